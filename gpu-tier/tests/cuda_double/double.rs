//! Builds and loads the driver double, and drives the hooks that a real driver lacks. With `KVTIER_TEST_DRIVER=real` nothing is loaded, and cudarc
//! finds the machine's driver: tests that are true on a card run there, those that need a hook say `SKIP`.

use std::ffi::{CString, c_char, c_void};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libloading::Library;

#[path = "library.rs"]
mod library;

/// Kinds of stream jobs that [`Double::hold`] can hold back.
pub const COPY_IN: u32 = 1;
pub const COPY_OUT: u32 = 2;
pub const FILL: u32 = 8;
pub const KERNEL: u32 = 16;
pub const HOST_FUNCTION: u32 = 32;

/// Kinds of operations that [`Double::fail`] can fail.
pub const ALLOCATION: u32 = 0;
pub const COPY: u32 = 1;
pub const LAUNCH: u32 = 2;

/// Driver codes used as faults.
pub const OUT_OF_MEMORY: u32 = 2;
pub const ECC_UNCORRECTABLE: u32 = 214;
pub const LAUNCH_FAILED: u32 = 719;

/// An image that the double accepts.
pub const IMAGE: &str = "cuda-driver-double: host functions";

/// What exists and what has run (`cuda_double_counters`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    pub live_bytes: u64,
    pub peak_bytes: u64,
    pub live_blocks: u64,
    pub pinned_bytes: u64,
    pub streams: u64,
    pub events: u64,
    pub modules: u64,
    pub copies: u64,
    pub launches: u64,
    /// Pinned for reading only.
    pub read_only_bytes: u64,
}

/// What launches of a kernel did in sum (`report.rs` of the double).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelCounts {
    pub launches: u64,
    pub warp_instructions: u64,
    pub thread_instructions: u64,
    pub global_load_bytes: u64,
    pub global_store_bytes: u64,
    pub global_requests: u64,
    pub global_sectors: u64,
    pub global_sectors_least: u64,
    pub global_coalesced16_bytes: u64,
    pub shared_requests: u64,
    pub shared_conflicts: u64,
    pub barriers: u64,
    pub matrix_multiply_adds: u64,
    pub special_instructions: u64,
    pub local_bytes: u64,
    /// Instructions of threads, by the ladder's kinds.
    pub by_kind: [u64; 17],
}

/// A launch as a host function sees it (`launch.rs` of the double).
#[repr(C)]
pub struct Launch {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub parameters: *const *const c_void,
    memory: *const c_void,
    pub resolve: unsafe extern "C" fn(*const Launch, u64, usize) -> *mut u8,
}

/// A kernel that runs on the host.
pub type HostFunction = unsafe extern "C" fn(*const Launch) -> u32;

/// Environment variable: whose driver the tests use, the `double` (or nothing) or the `real` one.
const DRIVER: &str = "KVTIER_TEST_DRIVER";

static LIBRARY: OnceLock<Library> = OnceLock::new();
static TURN: Mutex<()> = Mutex::new(());

/// The loaded double, for one test at a time: its hooks and counters are the process's.
pub struct Double {
    /// `None`: the driver is a real one.
    library: Option<&'static Library>,
    _turn: MutexGuard<'static, ()>,
}

/// Lets held jobs go on when it is dropped, also by a failing test.
pub struct Gate<'a>(&'a Double);

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        self.0.call("cuda_double_hold", 0u32);
    }
}

impl Double {
    /// Waits for the other tests, loads the double once, and sets it back to its defaults. For tests that are true on a card as well: conditions
    /// (jitter, schedules, capability) are left out there, and so are counts ([`Double::has_counts`]).
    pub fn take() -> Double {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let load = || {
            // SAFETY: our own library without constructors. It stays loaded, so cudarc's `dlopen("libcuda.so")` finds its soname.
            LIBRARY.get_or_init(|| unsafe { Library::new(library::build()) }.expect("the driver double can be loaded"))
        };
        let library = match std::env::var(DRIVER).as_deref() {
            Ok("real") => None,
            Ok("double" | "") | Err(_) => Some(load()),
            Ok(other) => panic!("{DRIVER}={other}: give double or real"),
        };
        let double = Double { library, _turn: turn };
        double.condition("cuda_double_reset", ());
        double
    }

    /// For tests that need faults, gates, limits or messages: `None` with a real driver, after saying so.
    pub fn take_hooks() -> Option<Double> {
        let double = Double::take();
        if double.library.is_none() {
            println!("SKIP: {} needs the driver double", std::thread::current().name().unwrap_or("a test"));
            return None;
        }
        Some(double)
    }

    /// Whether there are counters and counts of kernels.
    pub fn has_counts(&self) -> bool {
        self.library.is_some()
    }

    /// The double; a real driver has no hooks.
    fn library(&self) -> &'static Library {
        self.library.expect("a test of hooks takes them with `take_hooks`")
    }

    /// Sets a condition under which a test holds; a real driver's are what they are.
    fn condition<A: Arguments>(&self, name: &str, arguments: A) {
        if self.library.is_some() {
            self.call(name, arguments);
        }
    }

    fn call<A: Arguments>(&self, name: &str, arguments: A) {
        // SAFETY: each name is called with its own argument types, all in this file beside control.rs of the double.
        unsafe { arguments.call(self.library(), name) }
    }

    /// Holds jobs of the kinds in `mask` back until the gate is dropped.
    pub fn hold(&self, mask: u32) -> Gate<'_> {
        self.call("cuda_double_hold", mask);
        Gate(self)
    }

    pub fn set_jitter_us(&self, limit: u64) {
        self.condition("cuda_double_set_jitter_us", limit);
    }

    pub fn set_capacity(&self, bytes: usize) {
        self.call("cuda_double_set_capacity", bytes);
    }

    pub fn refuse_registration(&self) {
        self.call("cuda_double_refuse_registration", true);
    }

    /// The card cannot pin memory that the host may only read.
    pub fn forbid_read_only_registration(&self) {
        self.call("cuda_double_set_read_only_registration", false);
    }

    pub fn misalign(&self) {
        self.call("cuda_double_misalign", true);
    }

    /// Fails the `nth` operation of a kind from now, 1 is the next.
    pub fn fail(&self, kind: u32, nth: u64, code: u32) {
        self.call("cuda_double_fail", (kind, nth, code));
    }

    /// Offers a kernel; modules loaded later have it.
    pub fn register(&self, name: &str, run: HostFunction, parameter_bytes: &[usize]) {
        type Register = unsafe extern "C" fn(*const c_char, HostFunction, *const usize, usize);
        let name = CString::new(name).unwrap();
        // SAFETY: the symbol has this type in module.rs of the double, which copies what it is given.
        unsafe {
            let register = self.library().get::<Register>("cuda_double_register").unwrap();
            register(name.as_ptr(), run, parameter_bytes.as_ptr(), parameter_bytes.len());
        }
    }

    /// Compute capability times ten of the card that is imitated.
    pub fn set_capability(&self, capability: u32) {
        self.condition("cuda_double_set_capability", capability);
    }

    /// Version of the driver that is imitated: 12080 is CUDA 12.8.
    pub fn set_driver(&self, version: u32) {
        self.call("cuda_double_set_driver", version);
    }

    /// Runs threads in an order drawn from a seed.
    pub fn shuffle(&self, seed: u64) {
        self.condition("cuda_double_set_schedule", (2u32, seed));
    }

    /// Runs blocks and warps from the last to the first.
    pub fn reverse(&self) {
        self.condition("cuda_double_set_schedule", (1u32, 0u64));
    }

    /// Looks for races between blocks of a launch.
    pub fn look_for_global_races(&self) {
        self.condition("cuda_double_set_global_races", true);
    }

    /// Perturbs results of approximate functions.
    pub fn perturb(&self, seed: u64, ulps: u32) {
        self.condition("cuda_double_set_approximation", (seed, ulps));
    }

    /// Forgets what launches of PTX have done.
    pub fn forget_counts(&self) {
        self.condition("cuda_double_forget_counts", ());
    }

    /// What launches of PTX did since the double was taken or the counts were forgotten, of all kernels whose names begin with `kernel`.
    pub fn kernel_counts(&self, kernel: &str) -> KernelCounts {
        let kernel = CString::new(kernel).unwrap();
        // SAFETY: the symbol has this type in report.rs of the double.
        unsafe {
            let counts =
                self.library().get::<unsafe extern "C" fn(*const c_char) -> KernelCounts>("cuda_double_kernel_counts");
            counts.unwrap()(kernel.as_ptr())
        }
    }

    /// Keeps a log of when jobs run; forgets what it has.
    pub fn log(&self) {
        self.call("cuda_double_log", true);
    }

    /// Runs in the log of jobs whose names begin with `first` that went on beside one of `second` in another stream (`log.rs` of the double).
    pub fn side_by_side(&self, first: &str, second: &str) -> u64 {
        type SideBySide = unsafe extern "C" fn(*const c_char, *const c_char) -> u64;
        let [first, second] = [first, second].map(|name| CString::new(name).unwrap());
        // SAFETY: the symbol has this type in log.rs of the double.
        unsafe {
            self.library().get::<SideBySide>("cuda_double_side_by_side").unwrap()(first.as_ptr(), second.as_ptr())
        }
    }

    /// Text of the last failure of a module or kernel.
    pub fn message(&self) -> String {
        let mut text = vec![0; 4096];
        // SAFETY: the symbol has this type in report.rs of the double, and writes no more than the room it is given.
        let length = unsafe {
            let message = self.library().get::<unsafe extern "C" fn(*mut u8, usize) -> usize>("cuda_double_message");
            message.unwrap()(text.as_mut_ptr(), text.len())
        };
        text.truncate(length);
        String::from_utf8_lossy(&text).into_owned()
    }

    pub fn counters(&self) -> Counters {
        // SAFETY: the symbol has this type in control.rs of the double.
        unsafe { self.library().get::<extern "C" fn() -> Counters>("cuda_double_counters").unwrap()() }
    }

    /// Fails when a device that is gone has left something behind. A real driver does not tell.
    pub fn assert_nothing_left(&self) {
        if !self.has_counts() {
            return;
        }
        let left = self.counters();
        let none =
            Counters { live_bytes: 0, live_blocks: 0, pinned_bytes: 0, streams: 0, events: 0, modules: 0, ..left };
        assert_eq!(left, none, "a dropped device leaves nothing in the driver");
    }
}

/// Argument lists of the hooks.
trait Arguments {
    /// # Safety
    /// The symbol is a C function that takes these arguments and returns nothing.
    unsafe fn call(self, library: &Library, name: &str);
}

macro_rules! arguments {
    ($pattern:pat = $type:ty => $function:ty, $($argument:expr),*) => {
        impl Arguments for $type {
            unsafe fn call(self, library: &Library, name: &str) {
                let $pattern = self;
                // SAFETY: the caller vouches for the type.
                unsafe { library.get::<$function>(name).unwrap()($($argument),*) }
            }
        }
    };
}

arguments!(() = () => extern "C" fn(),);
arguments!(a = u32 => extern "C" fn(u32), a);
arguments!(a = u64 => extern "C" fn(u64), a);
arguments!(a = usize => extern "C" fn(usize), a);
arguments!(a = bool => extern "C" fn(bool), a);
arguments!((a, b) = (u32, u64) => extern "C" fn(u32, u64), a, b);
arguments!((a, b) = (u64, u32) => extern "C" fn(u64, u32), a, b);
arguments!((a, b, c) = (u32, u64, u32) => extern "C" fn(u32, u64, u32), a, b, c);
