//! PTX text into a [`Module`].

pub(crate) mod body;
mod cursor;
pub(crate) mod operand;
mod token;
pub(crate) mod variable;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::instruction::{Space, VARIABLES};
use crate::module::{Entry, Module, Parameter, ParseError, Variant};
use body::Body;
use cursor::Cursor;
use token::Token;
use variable::{Declaration, Symbol};

/// Parameters and body of a `.func`.
pub(crate) struct Function<'a> {
    pub(crate) results: Vec<Declaration<'a>>,
    pub(crate) parameters: Vec<Declaration<'a>>,
    /// Tokens between its braces; `None` for a declaration.
    pub(crate) body: Option<Range<usize>>,
}

/// What a kernel's body can refer to outside of itself.
#[derive(Default)]
pub(crate) struct Outside<'a> {
    pub(crate) symbols: HashMap<&'a str, Symbol>,
    /// Shared variables of the module; each kernel lays out those that it uses.
    pub(crate) shared: HashMap<&'a str, Declaration<'a>>,
    pub(crate) functions: HashMap<&'a str, Function<'a>>,
    constants: Vec<u8>,
    globals: Vec<u8>,
}

struct Kernel<'a> {
    name: &'a str,
    parameters: Vec<Declaration<'a>>,
    body: Range<usize>,
    max_threads: Option<u32>,
}

/// Reads a whole module: first what is declared, then the kernels' bodies.
pub(crate) fn module(text: &str, variant: Variant<'_>) -> Result<Module, ParseError> {
    let tokens = token::tokens(text)?;
    let mut cursor = Cursor::new(&tokens, 0);
    let (mut version, mut target) = (None, None);
    let (mut outside, mut kernels) = (Outside::default(), Vec::new());
    while cursor.peek().is_some() {
        let word = cursor.word()?;
        match word {
            ".version" => version = Some(read_version(&mut cursor)?),
            ".target" => {
                target = Some(cursor.word()?.to_owned());
                while cursor.take_mark(b',') {
                    cursor.word()?;
                }
            }
            ".address_size" => {
                if cursor.integer()? != 64 {
                    return Err(cursor.error("only .address_size 64 is executed"));
                }
            }
            ".visible" | ".extern" | ".weak" | ".common" => {}
            ".entry" => kernels.push(read_kernel(&mut cursor)?),
            ".func" => read_function(&mut cursor, &mut outside)?,
            ".global" | ".const" | ".shared" => read_variable(&mut cursor, word, &mut outside)?,
            ".file" => {
                cursor.next()?;
                cursor.next()?;
                while cursor.take_mark(b',') {
                    cursor.next()?;
                }
            }
            ".section" => {
                cursor.word()?;
                cursor.skip_braces()?;
            }
            ".pragma" | ".alias" => cursor.skip_statement()?,
            _ => return Err(cursor.error(format!("unknown directive {word}"))),
        }
    }
    let version = version.ok_or_else(|| ParseError::at(1, "no .version"))?;
    let target = target.ok_or_else(|| ParseError::at(1, "no .target"))?;
    let mut entries = BTreeMap::new();
    for kernel in kernels {
        let entry = read_body(&tokens, &outside, &kernel, variant)?;
        entries.insert(kernel.name.to_owned(), entry);
    }
    let Outside { constants, globals, .. } = outside;
    Ok(Module { version, target, entries, constants, globals: Arc::new(Mutex::new(globals)) })
}

/// The tokenizer reads `9.0` as a fraction.
fn read_version(cursor: &mut Cursor<'_, '_>) -> Result<(u32, u32), ParseError> {
    match cursor.next()? {
        Token::Float64(bits) => {
            let tenths = (f64::from_bits(bits) * 10.0).round() as u32;
            Ok((tenths / 10, tenths % 10))
        }
        _ => Err(cursor.error("not a version")),
    }
}

fn read_variable<'a>(cursor: &mut Cursor<'_, 'a>, space: &str, outside: &mut Outside<'a>) -> Result<(), ParseError> {
    for declaration in variable::declarations(cursor)? {
        let name = declaration.name;
        match space {
            ".shared" => {
                outside.shared.insert(name, declaration);
            }
            ".const" => {
                let offset = declaration.place_in(&mut outside.constants);
                outside.symbols.insert(name, Symbol::Variable { space: Space::Constant, offset });
            }
            _ => {
                let offset = VARIABLES | declaration.place_in(&mut outside.globals);
                outside.symbols.insert(name, Symbol::Variable { space: Space::Global, offset });
            }
        }
    }
    Ok(())
}

fn read_kernel<'a>(cursor: &mut Cursor<'_, 'a>) -> Result<Kernel<'a>, ParseError> {
    let name = cursor.word()?;
    let parameters = if cursor.take_mark(b'(') { variable::parameters(cursor)? } else { Vec::new() };
    let mut max_threads = None;
    while let Some(Token::Word(directive)) = cursor.peek() {
        cursor.next()?;
        match directive {
            ".maxntid" | ".reqntid" => max_threads = Some(read_sides(cursor)?),
            ".minnctapersm" | ".maxnreg" => {
                cursor.integer()?;
            }
            ".pragma" => cursor.skip_statement()?,
            _ => return Err(cursor.error(format!("unknown directive {directive} of a kernel"))),
        }
    }
    let start = cursor.at;
    cursor.skip_braces()?;
    Ok(Kernel { name, parameters, body: start..cursor.at, max_threads })
}

/// Product of up to three sides.
fn read_sides(cursor: &mut Cursor<'_, '_>) -> Result<u32, ParseError> {
    let mut product = cursor.integer()?;
    while cursor.take_mark(b',') {
        product = product.saturating_mul(cursor.integer()?);
    }
    Ok(product)
}

fn read_function<'a>(cursor: &mut Cursor<'_, 'a>, outside: &mut Outside<'a>) -> Result<(), ParseError> {
    let results = if cursor.take_mark(b'(') { variable::parameters(cursor)? } else { Vec::new() };
    let name = cursor.word()?;
    let parameters = if cursor.take_mark(b'(') { variable::parameters(cursor)? } else { Vec::new() };
    while matches!(cursor.peek(), Some(Token::Word(".noreturn" | ".unified"))) {
        cursor.next()?;
    }
    let body = if cursor.take_mark(b';') {
        None
    } else {
        let start = cursor.at;
        cursor.skip_braces()?;
        Some(start..cursor.at)
    };
    // A definition replaces its declaration.
    if body.is_some() || !outside.functions.contains_key(name) {
        outside.functions.insert(name, Function { results, parameters, body });
    }
    Ok(())
}

fn read_body<'a>(
    tokens: &[token::Placed<'a>],
    outside: &Outside<'a>,
    kernel: &Kernel<'a>,
    variant: Variant<'_>,
) -> Result<Entry, ParseError> {
    let mut body = Body::new(tokens, outside, variant);
    let (mut parameters, mut bytes) = (Vec::new(), 0u32);
    for declaration in &kernel.parameters {
        let offset = bytes.next_multiple_of(declaration.align);
        bytes = offset + declaration.bytes();
        parameters.push(Parameter { name: declaration.name.to_owned(), offset, bytes: declaration.bytes() });
        body.declare(declaration.name, Symbol::Variable { space: Space::Parameter, offset: u64::from(offset) });
    }
    body.read(kernel.body.clone())?;
    let laid = body.finish()?;
    Ok(Entry {
        name: kernel.name.to_owned(),
        parameters,
        parameter_bytes: bytes,
        code: laid.code,
        registers: laid.registers,
        predicates: laid.predicates,
        local_bytes: laid.local_bytes,
        shared_bytes: laid.shared_bytes,
        dynamic_shared: laid.dynamic_shared,
        max_threads: kernel.max_threads,
    })
}
