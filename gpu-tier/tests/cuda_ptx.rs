//! Compiled kernels through cudarc and the driver double: the double runs their PTX and fails as hardware does.

#[path = "cuda_double/double.rs"]
#[expect(dead_code, reason = "the other test of the double uses the rest")]
mod double;

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUfunction_attribute, CUresult};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result};
use double::{COPY_IN, Double, KERNEL};

const BASICS: &str = include_str!("../../tests/cuda-ladder/tests/kernels/basics.compute_80.ptx");
const BASICS_90A: &str = include_str!("../../tests/cuda-ladder/tests/kernels/basics.compute_90a.ptx");
const BASICS_100: &str = include_str!("../../tests/cuda-ladder/tests/kernels/basics.compute_100.ptx");

/// A kernel of a module, both unloaded when it is dropped.
struct Kernel {
    context: Arc<CudaContext>,
    module: sys::CUmodule,
    function: sys::CUfunction,
}

impl Kernel {
    fn load(context: &Arc<CudaContext>, ptx: &str, name: &str) -> Result<Kernel, DriverError> {
        let image = CString::new(ptx).unwrap();
        // SAFETY: the image ends in a zero byte; the double copies what it needs.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }?;
        let name = CString::new(name).unwrap();
        let mut kernel = Kernel { context: context.clone(), module, function: std::ptr::null_mut() };
        // SAFETY: the module is loaded.
        kernel.function = unsafe { result::module::get_function(module, name) }?;
        Ok(kernel)
    }

    /// Launches without any help of cudarc's in ordering streams.
    fn launch(
        &self,
        stream: &CudaStream,
        grid: u32,
        block: u32,
        shared_bytes: u32,
        values: &[&dyn Value],
    ) -> Result<(), DriverError> {
        let mut pointers: Vec<*mut c_void> = values.iter().map(|value| (**value).pointer()).collect();
        // SAFETY: each kernel is launched with as many values as it has, of their sizes; addresses are the double's to check.
        unsafe {
            let (grid, block) = ((grid, 1, 1), (block, 1, 1));
            result::launch_kernel(self.function, grid, block, shared_bytes, stream.cu_stream(), &mut pointers)
        }
    }

    fn allow_dynamic_shared(&self, bytes: i32) -> Result<(), DriverError> {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is loaded.
        unsafe { result::function::set_function_attribute(self.function, attribute, bytes) }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // A context that has failed answers with its error; the module goes all the same.
        let _ = self.context.bind_to_thread();
        // SAFETY: the module was loaded by `load` and nothing of it is used any more.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

/// A kernel's argument.
trait Value {
    fn pointer(&self) -> *mut c_void;
}

impl<T: Copy> Value for T {
    fn pointer(&self) -> *mut c_void {
        std::ptr::from_ref(self).cast_mut().cast()
    }
}

/// A device block, freed when it is dropped.
struct Block(u64);

impl Block {
    fn new(bytes: usize) -> Block {
        // SAFETY: nothing is dereferenced.
        Block(unsafe { result::malloc_sync(bytes) }.unwrap())
    }

    fn of(values: &[f32], stream: &CudaStream) -> Block {
        let block = Block::new(4 * values.len());
        // SAFETY: pageable memory is staged before the call returns.
        unsafe { result::memcpy_htod_async(block.0, values, stream.cu_stream()) }.unwrap();
        block
    }

    fn read(&self, count: usize, stream: &CudaStream) -> Result<Vec<f32>, DriverError> {
        let mut values = vec![0f32; count];
        // SAFETY: a copy to pageable memory is done when the call returns.
        unsafe { result::memcpy_dtoh_async(&mut values, self.0, stream.cu_stream()) }?;
        Ok(values)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the block is not used any more. A failed context frees it too, and says its error.
        let _ = unsafe { result::free_sync(self.0) };
    }
}

fn open() -> (Arc<CudaContext>, Arc<CudaStream>) {
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    (context, stream)
}

fn refused(context: &Arc<CudaContext>, ptx: &str) -> CUresult {
    Kernel::load(context, ptx, "axpy").map(|_| ()).unwrap_err().0
}

#[test]
fn kernels_run_end_to_end_and_are_counted() {
    let double = Double::take();
    for seed in 0..4 {
        if seed > 0 {
            double.shuffle(seed);
        }
        double.set_jitter_us(100);
        let (context, stream) = open();
        let axpy = Kernel::load(&context, BASICS, "axpy").unwrap();
        let values: Vec<f32> = (0..500).map(|index| index as f32).collect();
        let [x, y] = [Block::of(&values, &stream), Block::of(&values, &stream)];
        let z = Block::new(2000);
        axpy.launch(&stream, 4, 128, 0, &[&x.0, &y.0, &z.0, &0.5f32, &500u32]).unwrap();
        let expected: Vec<f32> = values.iter().map(|value| 1.5 * value).collect();
        assert_eq!(z.read(500, &stream).unwrap(), expected);
        if !double.has_counts() {
            continue;
        }
        let counts = double.kernel_counts("axpy");
        assert_eq!(
            (counts.launches, counts.global_load_bytes, counts.global_store_bytes),
            (seed + 1, 4000 * (seed + 1), 2000 * (seed + 1))
        );
        assert_eq!(double.kernel_counts("softmax").launches, 0);
    }
    double.assert_nothing_left();
}

#[test]
fn modules_are_read_as_a_driver_of_13_0_reads_them() {
    let Some(double) = Double::take_hooks() else { return };
    let (context, stream) = open();
    let newer = BASICS.replace(".version 9.0", ".version 9.1");
    assert_eq!(refused(&context, &newer), CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    assert_eq!(refused(&context, BASICS_100), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert_eq!(refused(&context, "no module"), CUresult::CUDA_ERROR_INVALID_IMAGE);
    let broken = BASICS.replacen("fma.rn.f32", "fma.rn.f31", 1);
    assert_eq!(refused(&context, &broken), CUresult::CUDA_ERROR_INVALID_PTX);
    let line = 1 + BASICS.lines().position(|line| line.contains("fma.rn.f32")).unwrap();
    assert!(double.message().starts_with(&format!("PTX line {line}: ")), "{}", double.message());
    let missing = Kernel::load(&context, BASICS, "nothing").map(|_| ()).unwrap_err();
    assert_eq!(missing, DriverError(CUresult::CUDA_ERROR_NOT_FOUND));
    // An `a` target is for one capability alone.
    for (capability, text, loads) in
        [(90, BASICS_90A, true), (100, BASICS_90A, false), (100, BASICS, true), (100, BASICS_100, true)]
    {
        double.set_capability(capability);
        assert_eq!(Kernel::load(&context, text, "axpy").is_ok(), loads, "{capability}");
        assert_eq!(context.compute_capability().unwrap(), (capability as i32 / 10, 0));
    }
    drop((stream, context));
    double.assert_nothing_left();
}

/// Launches axpy over 100 values with `count` and addresses shifted by `shift`; what the stream says afterwards, and the text.
fn fail_axpy(double: &Double, count: u32, shift: u64) -> (CUresult, String) {
    let (context, stream) = open();
    let axpy = Kernel::load(&context, BASICS, "axpy").unwrap();
    let [x, y] = [Block::of(&[1.0; 100], &stream), Block::of(&[1.0; 100], &stream)];
    let z = Block::new(400);
    axpy.launch(&stream, 1, 128, 0, &[&x.0, &y.0, &(z.0 + shift), &0.5f32, &count]).unwrap();
    let error = stream.synchronize().unwrap_err();
    // The error stays, on every call.
    assert_eq!(axpy.launch(&stream, 1, 1, 0, &[&x.0, &y.0, &z.0, &0.5f32, &1u32]), Err(error));
    assert_eq!(z.read(1, &stream).map(|_| ()), Err(error));
    (error.0, double.message())
}

#[test]
fn wrong_kernels_end_the_context_as_on_hardware() {
    let Some(double) = Double::take_hooks() else { return };
    let (code, message) = fail_axpy(&double, 101, 0);
    assert_eq!(code, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(
        message.contains("axpy PTX line") && message.contains("thread [100, 0, 0]: access out of bounds"),
        "{message}"
    );
    let (code, message) = fail_axpy(&double, 99, 2);
    assert_eq!(code, CUresult::CUDA_ERROR_MISALIGNED_ADDRESS, "{message}");
    // A kernel without its barrier.
    let (context, stream) = open();
    let racing = BASICS.lines().filter(|line| !line.contains("bar.sync")).collect::<Vec<_>>().join("\n");
    let softmax = Kernel::load(&context, &racing, "softmax").unwrap();
    let [from, to] = [Block::of(&[1.0; 256], &stream), Block::new(1024)];
    softmax.launch(&stream, 1, 128, 0, &[&from.0, &to.0, &256u32]).unwrap();
    assert_eq!(stream.synchronize(), Err(DriverError(CUresult::CUDA_ERROR_LAUNCH_FAILED)));
    drop((softmax, from, to, stream, context));
    // The next context works.
    let (context, stream) = open();
    let softmax = Kernel::load(&context, BASICS, "softmax").unwrap();
    let [from, to] = [Block::of(&[1.0; 256], &stream), Block::new(1024)];
    softmax.launch(&stream, 1, 128, 0, &[&from.0, &to.0, &256u32]).unwrap();
    assert_eq!(to.read(256, &stream).unwrap(), [1.0 / 256.0; 256]);
    drop((softmax, from, to, stream, context));
    double.assert_nothing_left();
}

#[test]
fn launches_beyond_the_limits_are_refused() {
    let Some(double) = Double::take_hooks() else { return };
    let (context, stream) = open();
    let reverse = Kernel::load(&context, BASICS, "reverse").unwrap();
    let block = Block::of(&[0.0; 128], &stream);
    let to = Block::new(512);
    let launch = |grid, block_size, shared| reverse.launch(&stream, grid, block_size, shared, &[&block.0, &to.0]);
    let invalid = Err(DriverError(CUresult::CUDA_ERROR_INVALID_VALUE));
    assert_eq!(launch(0, 128, 512), invalid);
    assert_eq!(launch(1, 1025, 512), invalid);
    assert_eq!(launch(1, 128, (48 << 10) + 1), invalid);
    // Beyond 48 KiB a kernel must be allowed to, up to what the card has.
    assert_eq!(reverse.allow_dynamic_shared((163 << 10) + 1), invalid);
    assert_eq!(reverse.allow_dynamic_shared(100 << 10), Ok(()));
    assert_eq!(launch(1, 128, 100 << 10), Ok(()));
    assert_eq!(launch(1, 128, (100 << 10) + 1), invalid);
    assert_eq!(stream.synchronize(), Ok(()));
    drop((block, to, reverse, stream, context));
    double.assert_nothing_left();
}

/// A kernel on one stream reads what a copy on another one brings. Returns what it saw.
fn scaled_after_copy(double: &Double, waits: bool) -> f32 {
    let (context, copies) = open();
    let compute = context.new_stream().unwrap();
    let axpy = Kernel::load(&context, BASICS, "axpy").unwrap();
    let [x, zero, z] = [Block::of(&[1.0; 64], &compute), Block::of(&[0.0; 64], &compute), Block::new(256)];
    compute.synchronize().unwrap();
    let gate = double.hold(COPY_IN);
    // SAFETY: pageable memory is staged before the call returns.
    unsafe { result::memcpy_htod_async(x.0, &[2.0f32; 64], copies.cu_stream()) }.unwrap();
    if waits {
        compute.join(&copies).unwrap();
    }
    axpy.launch(&compute, 1, 64, 0, &[&x.0, &zero.0, &z.0, &1.0f32, &64u32]).unwrap();
    if !waits {
        // Nothing holds the kernel back: it ends before the copy begins.
        compute.synchronize().unwrap();
    }
    drop(gate);
    copies.synchronize().unwrap();
    z.read(1, &compute).unwrap()[0]
}

#[test]
fn planted_wrong_stream_order_is_seen_by_the_kernel() {
    let Some(double) = Double::take_hooks() else { return };
    assert_eq!(scaled_after_copy(&double, true), 2.0);
    assert_eq!(scaled_after_copy(&double, false), 1.0, "the rig sees a missing wait");
    double.assert_nothing_left();
}

#[test]
fn planted_free_before_the_kernel_runs_is_an_illegal_address() {
    let Some(double) = Double::take_hooks() else { return };
    let (context, stream) = open();
    let axpy = Kernel::load(&context, BASICS, "axpy").unwrap();
    let [x, y, z] = [Block::of(&[1.0; 32], &stream), Block::of(&[1.0; 32], &stream), Block::new(128)];
    stream.synchronize().unwrap();
    let gate = double.hold(KERNEL);
    axpy.launch(&stream, 1, 32, 0, &[&x.0, &y.0, &z.0, &1.0f32, &32u32]).unwrap();
    drop(y);
    drop(gate);
    assert_eq!(stream.synchronize(), Err(DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)));
    assert!(double.message().contains("read of 4 bytes at global address"), "{}", double.message());
    drop((x, z, axpy, stream, context));
    double.assert_nothing_left();
}

#[test]
fn planted_free_while_copying_is_an_illegal_address() {
    let Some(double) = Double::take_hooks() else { return };
    let (context, stream) = open();
    let block = Block::new(128);
    let gate = double.hold(COPY_IN);
    // SAFETY: pageable memory is staged before the call returns.
    unsafe { result::memcpy_htod_async(block.0, &[1.0f32; 32], stream.cu_stream()) }.unwrap();
    drop(block);
    drop(gate);
    assert_eq!(stream.synchronize(), Err(DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)));
    drop((stream, context));
    double.assert_nothing_left();
}

/// Registers 4 KiB of host memory with `flags`, and lets a kernel read it and write into it through its device address.
fn through_mapped_memory(flags: u32) -> (Result<(), DriverError>, Vec<f32>) {
    #[repr(align(4096))]
    struct Page([f32; 1024]);
    let mut page = Box::new(Page([3.0; 1024]));
    let host = page.0.as_mut_ptr().cast::<c_void>();
    let (context, stream) = open();
    let mut mapped = 0;
    // SAFETY: the page outlives its registration; nobody looks at it while the kernel runs.
    unsafe {
        sys::cuMemHostRegister_v2(host, 4096, flags).result().unwrap();
        sys::cuMemHostGetDevicePointer_v2(&mut mapped, host, 0).result().unwrap();
    }
    let axpy = Kernel::load(&context, BASICS, "axpy").unwrap();
    axpy.launch(&stream, 1, 32, 0, &[&mapped, &(mapped + 2048), &(mapped + 128), &2.0f32, &32u32]).unwrap();
    let done = stream.synchronize();
    // SAFETY: the kernel is done or has failed.
    let _ = unsafe { sys::cuMemHostUnregister(host) };
    (done, page.0[..64].to_vec())
}

#[test]
fn kernels_use_mapped_host_memory_as_it_was_registered() {
    let Some(double) = Double::take_hooks() else { return };
    let (done, values) = through_mapped_memory(sys::CU_MEMHOSTREGISTER_DEVICEMAP);
    assert_eq!((done, values), (Ok(()), [[3.0; 32], [9.0; 32]].concat()));
    let flags = sys::CU_MEMHOSTREGISTER_DEVICEMAP | sys::CU_MEMHOSTREGISTER_READ_ONLY;
    let (done, values) = through_mapped_memory(flags);
    assert_eq!((done, values), (Err(DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)), vec![3.0; 64]));
    assert!(double.message().contains("write to read-only memory"), "{}", double.message());
    double.assert_nothing_left();
}
