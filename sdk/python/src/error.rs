//! `kvtier.Error`: why a call was not done.

use kvtier_sdk::plugin::PluginError;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyType;

pyo3::create_exception!(kvtier, Error, PyException, "Why a call was not done. `code` is for programs.");

/// The class, with an empty `code` for whoever makes one without.
pub(crate) fn class(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    let class = py.get_type::<Error>();
    class.setattr("code", "")?;
    Ok(class)
}

/// An error with its code. To be called with the interpreter's lock.
pub(crate) fn raise(py: Python<'_>, error: &PluginError) -> PyErr {
    with_code(py, &error.code(), &error.sentence())
}

/// An error of this code.
pub(crate) fn with_code(py: Python<'_>, code: &str, sentence: &str) -> PyErr {
    let raised = Error::new_err(sentence.to_owned());
    // Without memory for the attribute it has the class's.
    let _ = raised.value(py).setattr("code", code);
    raised
}

/// A caller's mistake.
pub(crate) fn usage(py: Python<'_>, sentence: &str) -> PyErr {
    with_code(py, kvtier_sdk::plugin::codes::USAGE, &format!("failed to use what was given: {sentence}"))
}
