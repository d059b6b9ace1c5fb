//! A parsed module: its kernels, and what the driver wants to know of them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use crate::instruction::{Instruction, Preset};
use crate::read;

/// Why a text is no module that can be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line of the text, from 1.
    pub line: u32,
    /// What is wrong there.
    pub reason: String,
}

impl ParseError {
    pub(crate) fn at(line: u32, reason: impl Into<String>) -> ParseError {
        ParseError { line, reason: reason.into() }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PTX line {}: {}", self.line, self.reason)
    }
}

impl std::error::Error for ParseError {}

/// A parameter of a kernel: where its value lies in the launch's parameter bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in the PTX.
    pub name: String,
    /// Offset in the parameter bytes, a multiple of its alignment.
    pub offset: u32,
    /// Size of the value.
    pub bytes: u32,
}

/// A module of PTX, every instruction decoded.
#[derive(Debug)]
pub struct Module {
    /// `.version`, such as (9, 0).
    pub version: (u32, u32),
    /// `.target`, such as `sm_90a`.
    pub target: String,
    pub(crate) entries: BTreeMap<String, Entry>,
    pub(crate) constants: Vec<u8>,
    /// `.global` variables, shared by all launches of the module.
    pub(crate) globals: Arc<Mutex<Vec<u8>>>,
}

/// A kernel.
#[derive(Debug)]
pub struct Entry {
    pub(crate) name: String,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) parameter_bytes: u32,
    pub(crate) code: Vec<Instruction>,
    /// One per register; what it holds when a thread starts.
    pub(crate) registers: Vec<Preset>,
    pub(crate) predicates: u32,
    pub(crate) local_bytes: u32,
    pub(crate) shared_bytes: u32,
    /// Where dynamic shared memory starts.
    pub(crate) dynamic_shared: u32,
    pub(crate) max_threads: Option<u32>,
}

/// Lets one opcode be executed as another: a deliberately wrong interpreter, to see whether tests notice.
pub type Variant<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Module {
    /// Reads a module. Errors: bad syntax, an unknown symbol, and any opcode, modifier or directive that is not executed here:
    /// nothing is skipped.
    pub fn parse(text: &str) -> Result<Module, ParseError> {
        read::module(text, &|_| None)
    }

    /// Like [`Module::parse`], with opcodes that `variant` maps executed as what it maps them to.
    pub fn parse_variant(text: &str, variant: Variant<'_>) -> Result<Module, ParseError> {
        read::module(text, variant)
    }

    /// A kernel by its name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// All kernels in order of their names.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The compute capability that `.target` asks for, such as 90 for `sm_90a`.
    pub fn capability(&self) -> Option<u32> {
        let digits = self.target.strip_prefix("sm_")?;
        digits.trim_end_matches(|letter: char| letter.is_ascii_alphabetic()).parse().ok()
    }
}

impl Entry {
    /// Name in the PTX.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameters in order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Shared memory that the kernel declares itself.
    pub fn static_shared_bytes(&self) -> u32 {
        self.shared_bytes
    }

    /// Local memory of a thread, as PTX declares it (registers that spill are not known before ptxas).
    pub fn local_bytes(&self) -> u32 {
        self.local_bytes
    }

    /// `.maxntid`: the most threads of a block that the kernel was compiled for.
    pub fn max_threads(&self) -> Option<u32> {
        self.max_threads
    }

    /// PTX instructions in its body, called functions included.
    pub fn instructions(&self) -> usize {
        self.code.len()
    }

    /// The parameter bytes of a launch from one value per parameter. Errors: another number of values or another size, in words.
    pub fn pack(&self, values: &[&[u8]]) -> Result<Vec<u8>, String> {
        if values.len() != self.parameters.len() {
            return Err(format!("{} has {} parameters, not {}", self.name, self.parameters.len(), values.len()));
        }
        let mut packed = vec![0; self.parameter_bytes as usize];
        for (value, parameter) in values.iter().zip(&self.parameters) {
            let place = &mut packed[parameter.offset as usize..][..parameter.bytes as usize];
            if value.len() != place.len() {
                return Err(format!("{} has {} bytes, not {}", parameter.name, place.len(), value.len()));
            }
            place.copy_from_slice(value);
        }
        Ok(packed)
    }
}
