//! The boundary: every function of the ABI runs in [`guard`]. What goes wrong is a code, and a message that the thread keeps.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use kvtier_sdk::plugin::PluginError;

use crate::codes::{code_of, kvtier_code};

/// Why a function failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: kvtier_code,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: kvtier_code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure::new(kvtier_code::KVTIER_USAGE, message)
    }
}

impl From<PluginError> for Failure {
    fn from(error: PluginError) -> Failure {
        Failure::new(code_of(&error), error.sentence())
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Runs a function of the ABI. A panic is a bug of ours, and ends here.
pub(crate) fn guard(call: impl FnOnce() -> Result<(), Failure>) -> kvtier_code {
    match caught(call) {
        Ok(()) => kvtier_code::KVTIER_OK,
        Err(failure) => {
            let message = text(&failure.message);
            // A thread that is ending keeps no message.
            let _ = LAST.try_with(|last| last.replace(message));
            failure.code
        }
    }
}

/// Runs something; a panic in it is a failure.
pub(crate) fn caught<T>(call: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // What a panic leaves half done is behind locks that do not mind, or goes with its handle.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| {
        let said = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let said = said.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        // A payload's own drop may panic.
        std::mem::forget(payload);
        Err(Failure::new(kvtier_code::KVTIER_PANIC, format!("failed by a bug in kvtier: {said}")))
    })
}

/// A text for C, without what C cannot have in one.
pub(crate) fn text(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).expect("there is no zero in it any more")
}

/// Why the last call of this thread that failed did so: one sentence in UTF-8, good until the next one fails. Empty when none has.
#[unsafe(no_mangle)]
pub extern "C" fn kvtier_last_message() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn last() -> String {
        // SAFETY: a C string of this thread, which nothing changes meanwhile.
        unsafe { CStr::from_ptr(kvtier_last_message()) }.to_str().unwrap().to_owned()
    }

    /// What panics on purpose, so that nobody finds the boundary open.
    #[test]
    fn a_planted_panic_does_not_cross_the_boundary() {
        assert_eq!(guard(|| panic!("planted {}", 7)), kvtier_code::KVTIER_PANIC);
        assert_eq!(last(), "failed by a bug in kvtier: planted 7");
        assert_eq!(guard(|| panic!("planted")), kvtier_code::KVTIER_PANIC);
        assert_eq!(guard(|| std::panic::panic_any(7)), kvtier_code::KVTIER_PANIC);
        assert_eq!(guard(|| Ok(())), kvtier_code::KVTIER_OK);
        assert_eq!(last(), "failed by a bug in kvtier: ", "kept");
        let elsewhere = std::thread::spawn(last).join().unwrap();
        assert_eq!(elsewhere, "", "of each thread its own");
        assert_eq!(guard(|| Err(Failure::usage("a\0b"))), kvtier_code::KVTIER_USAGE);
        assert_eq!(last(), "a b");
    }
}
