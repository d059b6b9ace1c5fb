//! The body of a kernel: scopes, labels, registers, and the instructions as they are decoded. Called functions are read into
//! their caller's body, each call anew, which gives every call its own registers and needs no stack.

use std::collections::HashMap;
use std::ops::Range;

use super::cursor::Cursor;
use super::operand::{self, Operand};
use super::token::{Placed, Token};
use super::variable::{self, Declaration, Symbol};
use super::{Function, Outside};
use crate::counts::Kind;
use crate::decode;
use crate::instruction::{Condition, Instruction, Op, Place, Preset, Space, Special};
use crate::module::{ParseError, Variant};

/// Calls inside calls; PTX functions that call themselves are not executed.
const DEPTH: usize = 16;
/// Label of a function's end; no label of PTX looks like this.
const RETURN: &str = "return";

struct Scope {
    parent: Option<usize>,
    names: HashMap<String, Symbol>,
}

/// A branch whose target is not known yet.
struct Pending {
    instruction: usize,
    scope: usize,
    labels: Vec<String>,
    line: u32,
}

/// Everything about a body while it is read.
pub(crate) struct Body<'m, 'a> {
    tokens: &'m [Placed<'a>],
    outside: &'m Outside<'a>,
    variant: Variant<'m>,
    scopes: Vec<Scope>,
    scope: usize,
    labels: HashMap<(usize, String), u32>,
    /// `.branchtargets` by their label.
    tables: HashMap<(usize, String), Vec<String>>,
    pending: Vec<Pending>,
    /// Scopes of the functions that are being read.
    calls: Vec<usize>,
    presets: HashMap<Preset, u32>,
    shared: HashMap<&'a str, u64>,
    laid: Laid,
    dynamic_align: u32,
    source: Option<(u32, u32)>,
    pub(crate) line: u32,
    guard: Condition,
    reads: Vec<u32>,
    conditions: Vec<u32>,
}

/// A body that has been read.
#[derive(Default)]
pub(crate) struct Laid {
    pub(crate) code: Vec<Instruction>,
    pub(crate) registers: Vec<Preset>,
    pub(crate) predicates: u32,
    pub(crate) local_bytes: u32,
    pub(crate) shared_bytes: u32,
    pub(crate) dynamic_shared: u32,
}

impl<'m, 'a> Body<'m, 'a> {
    pub(crate) fn new(tokens: &'m [Placed<'a>], outside: &'m Outside<'a>, variant: Variant<'m>) -> Body<'m, 'a> {
        Body {
            tokens,
            outside,
            variant,
            scopes: vec![Scope { parent: None, names: HashMap::new() }],
            scope: 0,
            labels: HashMap::new(),
            tables: HashMap::new(),
            pending: Vec::new(),
            calls: Vec::new(),
            presets: HashMap::new(),
            shared: HashMap::new(),
            laid: Laid { predicates: 1, ..Laid::default() },
            dynamic_align: 16,
            source: None,
            line: 0,
            guard: Condition::ALWAYS,
            reads: Vec::new(),
            conditions: Vec::new(),
        }
    }

    pub(crate) fn error(&self, reason: impl Into<String>) -> ParseError {
        ParseError::at(self.line, reason)
    }

    /// Gives a name of the innermost scope its meaning.
    pub(crate) fn declare(&mut self, name: &str, symbol: Symbol) {
        self.scopes[self.scope].names.insert(name.to_owned(), symbol);
    }

    /// Reads a block with its braces.
    pub(crate) fn read(&mut self, range: Range<usize>) -> Result<(), ParseError> {
        let mut cursor = Cursor::new(self.tokens, range.start);
        let outer = self.scope;
        let mut depth = 0;
        while cursor.at < range.end {
            self.line = cursor.line();
            match cursor.next()? {
                Token::Mark(b'{') => {
                    self.enter(Some(self.scope));
                    depth += 1;
                }
                Token::Mark(b'}') => {
                    self.scope = self.scopes[self.scope].parent.unwrap_or(outer);
                    depth -= 1;
                }
                Token::Mark(b';') => {}
                Token::Mark(b'@') => {
                    let negated = cursor.take_mark(b'!');
                    let name = cursor.word()?;
                    self.guard = Condition { negated, ..self.named_condition(name)? };
                    let opcode = cursor.word()?;
                    self.instruction(&mut cursor, opcode)?;
                }
                Token::Word(label) if cursor.take_mark(b':') => self.label(&mut cursor, label)?,
                Token::Word(directive) if directive.starts_with('.') => self.directive(&mut cursor, directive)?,
                Token::Word(opcode) => self.instruction(&mut cursor, opcode)?,
                token => return Err(self.error(format!("unexpected {token:?}"))),
            }
        }
        debug_assert_eq!(depth, 0);
        Ok(())
    }

    fn enter(&mut self, parent: Option<usize>) {
        self.scopes.push(Scope { parent, names: HashMap::new() });
        self.scope = self.scopes.len() - 1;
    }

    fn here(&self) -> u32 {
        self.laid.code.len() as u32
    }

    fn label(&mut self, cursor: &mut Cursor<'_, 'a>, label: &str) -> Result<(), ParseError> {
        if cursor.peek() == Some(Token::Word(".branchtargets")) {
            cursor.next()?;
            let mut targets = vec![cursor.word()?.to_owned()];
            while cursor.take_mark(b',') {
                targets.push(cursor.word()?.to_owned());
            }
            cursor.expect(b';')?;
            self.tables.insert((self.scope, label.to_owned()), targets);
            return Ok(());
        }
        let before = self.labels.insert((self.scope, label.to_owned()), self.here());
        if before.is_some() { Err(self.error(format!("label {label} stands twice"))) } else { Ok(()) }
    }

    fn directive(&mut self, cursor: &mut Cursor<'_, 'a>, directive: &str) -> Result<(), ParseError> {
        match directive {
            ".reg" => self.registers(cursor),
            ".local" | ".param" => {
                for declaration in variable::declarations(cursor)? {
                    let offset = self.local(&declaration);
                    self.declare(declaration.name, Symbol::Variable { space: Space::Local, offset });
                }
                Ok(())
            }
            ".shared" => {
                for declaration in variable::declarations(cursor)? {
                    let offset = self.lay_shared(&declaration);
                    self.declare(declaration.name, Symbol::Variable { space: Space::Shared, offset });
                }
                Ok(())
            }
            ".loc" => self.location(cursor),
            ".pragma" => cursor.skip_statement(),
            _ => Err(self.error(format!("unknown directive {directive}"))),
        }
    }

    fn local(&mut self, declaration: &Declaration<'_>) -> u64 {
        let offset = self.laid.local_bytes.next_multiple_of(declaration.align);
        self.laid.local_bytes = offset + declaration.bytes();
        u64::from(offset)
    }

    fn lay_shared(&mut self, declaration: &Declaration<'a>) -> u64 {
        let offset = self.laid.shared_bytes.next_multiple_of(declaration.align);
        self.laid.shared_bytes = offset + declaration.bytes();
        u64::from(offset)
    }

    /// `.loc file line column [, function_name label [+ offset], inlined_at file line column]`, without a semicolon.
    fn location(&mut self, cursor: &mut Cursor<'_, 'a>) -> Result<(), ParseError> {
        self.source = Some((cursor.integer()?, cursor.integer()?));
        cursor.integer()?;
        while cursor.take_mark(b',') {
            match cursor.word()? {
                "function_name" => {
                    cursor.word()?;
                    if cursor.take_mark(b'+') {
                        cursor.integer()?;
                    }
                }
                "inlined_at" => {
                    for _ in 0..3 {
                        cursor.integer()?;
                    }
                }
                word => return Err(self.error(format!("unknown {word} of .loc"))),
            }
        }
        Ok(())
    }

    fn registers(&mut self, cursor: &mut Cursor<'_, 'a>) -> Result<(), ParseError> {
        let word = cursor.word()?;
        let bits = match (word, variable::type_bytes(word)) {
            (".pred", _) => None,
            (_, Some(bytes)) if bytes <= 8 => Some(8 * bytes),
            _ => return Err(self.error(format!("registers of type {word} are not executed"))),
        };
        loop {
            let name = cursor.word()?;
            if cursor.take_mark(b'<') {
                let count = cursor.integer()?;
                cursor.expect(b'>')?;
                for number in 0..count {
                    self.register(&format!("{name}{number}"), bits);
                }
            } else {
                self.register(name, bits);
            }
            if !cursor.take_mark(b',') {
                return cursor.expect(b';');
            }
        }
    }

    fn register(&mut self, name: &str, bits: Option<u32>) {
        let symbol = match bits {
            Some(bits) => {
                self.laid.registers.push(Preset::Unset);
                Symbol::Register { index: self.laid.registers.len() as u32 - 1, bits }
            }
            None => {
                self.laid.predicates += 1;
                Symbol::Predicate(self.laid.predicates - 1)
            }
        };
        self.declare(name, symbol);
    }

    fn instruction(&mut self, cursor: &mut Cursor<'_, 'a>, opcode: &'a str) -> Result<(), ParseError> {
        let operands = operand::list(cursor)?;
        let replaced = (self.variant)(opcode);
        let decoded = decode::instruction(self, replaced.as_deref().unwrap_or(opcode), &operands);
        self.guard = Condition::ALWAYS;
        decoded
    }

    /// Appends a decoded instruction with what was asked for since the last one.
    pub(crate) fn push(&mut self, op: Op, kind: Kind) {
        let mut conditions = std::mem::take(&mut self.conditions);
        if self.guard.index != 0 {
            conditions.push(self.guard.index);
        }
        self.laid.code.push(Instruction {
            op,
            guard: self.guard,
            kind,
            line: self.line,
            source: self.source,
            reads: std::mem::take(&mut self.reads).into(),
            conditions: conditions.into(),
            approximate: None,
        });
    }

    /// The instruction that was pushed last.
    pub(crate) fn last(&mut self) -> &mut Instruction {
        self.laid.code.last_mut().expect("an instruction was pushed")
    }

    /// Appends a branch to labels that may come later.
    pub(crate) fn push_branch(&mut self, op: Op, labels: Vec<String>) {
        self.push(op, Kind::Control);
        let instruction = self.laid.code.len() - 1;
        self.pending.push(Pending { instruction, scope: self.scope, labels, line: self.line });
    }

    /// The labels of a `.branchtargets` table.
    pub(crate) fn table(&self, name: &str) -> Option<Vec<String>> {
        self.up(self.scope).find_map(|scope| self.tables.get(&(scope, name.to_owned())).cloned())
    }

    fn up(&self, scope: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(scope), |scope| self.scopes[*scope].parent)
    }

    /// `ret`: out of the function that is being read, or of the kernel.
    pub(crate) fn push_return(&mut self) {
        match self.calls.last().copied() {
            Some(function) => {
                self.push(Op::Branch(0), Kind::Control);
                let instruction = self.laid.code.len() - 1;
                let pending =
                    Pending { instruction, scope: function, labels: vec![RETURN.to_owned()], line: self.line };
                self.pending.push(pending);
            }
            None => self.push(Op::Exit, Kind::Control),
        }
    }

    /// Reads a function's body in the place of its call. Its parameters are the caller's variables.
    pub(crate) fn call(&mut self, name: &str, results: &[&str], arguments: &[&str]) -> Result<(), ParseError> {
        let outside = self.outside;
        let function: &Function<'a> =
            outside.functions.get(name).ok_or_else(|| self.error(format!("unknown function {name}")))?;
        let Some(body) = function.body.clone() else {
            if name == "__assertfail" {
                self.push(Op::Trap("an assertion of the kernel failed".to_owned()), Kind::Control);
                return Ok(());
            }
            return Err(self.error(format!("function {name} has no body")));
        };
        if self.calls.len() == DEPTH
            || function.results.len() != results.len()
            || function.parameters.len() != arguments.len()
        {
            return Err(self.error(format!("call of {name} is too deep or has the wrong arguments")));
        }
        let formal = function.results.iter().chain(&function.parameters);
        let bound: Result<Vec<_>, _> = formal
            .zip(results.iter().chain(arguments))
            .map(|(formal, actual)| Ok((formal.name, self.symbol(actual)?)))
            .collect();
        let (caller, line, source) = (self.scope, self.line, self.source);
        let over = (self.guard.index != 0).then(|| {
            // A guarded call: whoever does not call goes on behind it.
            self.guard.negated = !self.guard.negated;
            self.push(Op::Branch(0), Kind::Control);
            self.guard = Condition::ALWAYS;
            self.laid.code.len() - 1
        });
        self.enter(None);
        for (formal, symbol) in bound? {
            self.declare(formal, symbol);
        }
        let scope = self.scope;
        self.calls.push(scope);
        self.read(body)?;
        self.calls.pop();
        self.labels.insert((scope, RETURN.to_owned()), self.here());
        if let Some(over) = over {
            self.laid.code[over].op = Op::Branch(self.here());
        }
        (self.scope, self.line, self.source) = (caller, line, source);
        Ok(())
    }

    pub(crate) fn symbol(&mut self, name: &str) -> Result<Symbol, ParseError> {
        let found = self.up(self.scope).find_map(|scope| self.scopes[scope].names.get(name).copied());
        // The kernel's own scope is the parent of all but functions'.
        if let Some(symbol) = found.or_else(|| self.outside.symbols.get(name).copied()) {
            return Ok(symbol);
        }
        let outside = self.outside;
        let Some((name, declaration)) = outside.shared.get_key_value(name) else {
            return Err(self.error(format!("unknown name {name}")));
        };
        if declaration.count.is_none() {
            self.dynamic_align = self.dynamic_align.max(declaration.align);
            return Ok(Symbol::Variable { space: Space::Shared, offset: DYNAMIC });
        }
        let offset = match self.shared.get(name) {
            Some(offset) => *offset,
            None => {
                let offset = self.lay_shared(declaration);
                self.shared.insert(name, offset);
                offset
            }
        };
        Ok(Symbol::Variable { space: Space::Shared, offset })
    }

    /// The register that always holds `preset`.
    pub(crate) fn preset(&mut self, preset: Preset) -> u32 {
        let registers = &mut self.laid.registers;
        *self.presets.entry(preset).or_insert_with(|| {
            registers.push(preset);
            registers.len() as u32 - 1
        })
    }

    /// A register to read; an immediate is cut to `bits`.
    pub(crate) fn source(&mut self, operand: &Operand<'_>, bits: u32) -> Result<u32, ParseError> {
        let index = self.source_unchecked(operand, bits)?;
        if self.laid.registers[index as usize] == Preset::Unset {
            self.reads.push(index);
        }
        Ok(index)
    }

    /// Like [`Body::source`] for instructions that may copy what is unset.
    pub(crate) fn source_unchecked(&mut self, operand: &Operand<'_>, bits: u32) -> Result<u32, ParseError> {
        let mask = if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
        let constant = match operand {
            Operand::Name(name) => {
                if let Some(special) = special(name) {
                    return Ok(self.preset(Preset::Special(special)));
                }
                if *name == "WARP_SZ" {
                    return Ok(self.preset(Preset::Constant(32)));
                }
                match self.symbol(name)? {
                    Symbol::Register { index, .. } => return Ok(index),
                    Symbol::Variable { space: Space::Shared, offset: DYNAMIC } => return Ok(self.dynamic(0)),
                    Symbol::Variable { offset, .. } => offset,
                    Symbol::Predicate(_) => return Err(self.error(format!("{name} is a predicate"))),
                }
            }
            Operand::Address { base, offset } => match &**base {
                Operand::Name(name) => match self.symbol(name)? {
                    Symbol::Variable { space: Space::Shared, offset: DYNAMIC } => return Ok(self.dynamic(*offset)),
                    Symbol::Variable { offset: start, .. } => start.wrapping_add_signed(*offset),
                    _ => return Err(self.error("not a value")),
                },
                _ => return Err(self.error("not a value")),
            },
            Operand::Integer(value) => *value,
            Operand::Float32(value) => u64::from(*value),
            // A decimal fraction in a place of 32 bits.
            Operand::Float64(value) if bits == 32 => u64::from((f64::from_bits(*value) as f32).to_bits()),
            Operand::Float64(value) => *value,
            _ => return Err(self.error("not a value")),
        };
        Ok(self.preset(Preset::Constant(constant & mask)))
    }

    /// A register with an address in dynamic shared memory, whose start is known at the end of the body only.
    fn dynamic(&mut self, offset: i64) -> u32 {
        self.preset(Preset::Constant(DYNAMIC.wrapping_add_signed(offset)))
    }

    /// A register to write: index and bits.
    pub(crate) fn target(&mut self, operand: &Operand<'_>) -> Result<(u32, u32), ParseError> {
        match operand {
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Register { index, bits } => Ok((index, bits)),
                _ => Err(self.error(format!("{name} is not a register"))),
            },
            _ => Err(self.error("the target is not a register")),
        }
    }

    /// A register or predicate to write; `None` for `_`.
    pub(crate) fn optional<T>(
        &mut self,
        operand: &Operand<'_>,
        read: impl FnOnce(&mut Self, &Operand<'_>) -> Result<T, ParseError>,
    ) -> Result<Option<T>, ParseError> {
        if *operand == Operand::Name("_") { Ok(None) } else { read(self, operand).map(Some) }
    }

    pub(crate) fn predicate_target(&mut self, operand: &Operand<'_>) -> Result<u32, ParseError> {
        match operand {
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Predicate(index) => Ok(index),
                _ => Err(self.error(format!("{name} is not a predicate"))),
            },
            _ => Err(self.error("the target is not a predicate")),
        }
    }

    /// Whether the operand names a predicate.
    pub(crate) fn is_predicate(&mut self, operand: &Operand<'_>) -> bool {
        matches!(operand, Operand::Name(name) if matches!(self.symbol(name), Ok(Symbol::Predicate(_))))
    }

    fn named_condition(&mut self, name: &str) -> Result<Condition, ParseError> {
        match self.symbol(name)? {
            Symbol::Predicate(index) => Ok(Condition { index, negated: false }),
            _ => Err(self.error(format!("{name} is not a predicate"))),
        }
    }

    /// A predicate to read.
    pub(crate) fn condition(&mut self, operand: &Operand<'_>) -> Result<Condition, ParseError> {
        let condition = match operand {
            Operand::Name(name) => self.named_condition(name)?,
            Operand::Not(name) => Condition { negated: true, ..self.named_condition(name)? },
            Operand::Integer(value) => return Ok(Condition { index: 0, negated: *value == 0 }),
            _ => return Err(self.error("not a predicate")),
        };
        self.conditions.push(condition.index);
        Ok(condition)
    }

    /// An address operand. A call's parameters are local variables whatever the instruction says.
    pub(crate) fn place(&mut self, operand: &Operand<'_>, mut space: Space) -> Result<Place, ParseError> {
        let Operand::Address { base, offset } = operand else {
            return Err(self.error("not an address"));
        };
        if space == Space::Parameter
            && let Operand::Name(name) = &**base
            && let Symbol::Variable { space: Space::Local, .. } = self.symbol(name)?
        {
            space = Space::Local;
        }
        let narrow =
            matches!(&**base, Operand::Name(name) if matches!(self.symbol(name)?, Symbol::Register { bits: 32, .. }));
        let base = self.source(base, 64)?;
        Ok(Place { space, base, offset: *offset, narrow })
    }

    /// Resolves labels and lays out dynamic shared memory behind the static one.
    pub(crate) fn finish(mut self) -> Result<Laid, ParseError> {
        self.push(Op::Exit, Kind::Control);
        for pending in std::mem::take(&mut self.pending) {
            let find = |label: &String| {
                let found = self.up(pending.scope).find_map(|scope| self.labels.get(&(scope, label.clone())).copied());
                found.ok_or_else(|| ParseError::at(pending.line, format!("unknown label {label}")))
            };
            let targets: Vec<u32> = pending.labels.iter().map(find).collect::<Result<_, _>>()?;
            match &mut self.laid.code[pending.instruction].op {
                Op::Branch(target) => *target = targets[0],
                Op::BranchIndexed { targets: places, .. } => *places = targets.into(),
                _ => unreachable!("only branches are pending"),
            }
        }
        let start = self.laid.shared_bytes.next_multiple_of(self.dynamic_align);
        self.laid.dynamic_shared = start;
        for preset in &mut self.laid.registers {
            if let Preset::Constant(value) = preset
                && *value >> 32 == DYNAMIC >> 32
            {
                *value = u64::from(start).wrapping_add(*value).wrapping_sub(DYNAMIC);
            }
        }
        Ok(self.laid)
    }
}

/// Stands for the start of dynamic shared memory until [`Body::finish`]; no immediate looks like it by accident.
const DYNAMIC: u64 = 0x5A5A_D1A3_8000_0000;

fn special(name: &str) -> Option<Special> {
    let axis = |name: &str| match name {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    let (register, side) = name.split_once('.').map_or((name, None), |(register, side)| (register, axis(side)));
    Some(match (register, side) {
        ("%tid", Some(axis)) => Special::Thread(axis),
        ("%ntid", Some(axis)) => Special::Threads(axis),
        ("%ctaid", Some(axis)) => Special::Block(axis),
        ("%nctaid", Some(axis)) => Special::Blocks(axis),
        ("%laneid", None) => Special::Lane,
        ("%warpid", None) => Special::Warp,
        ("%nwarpid", None) => Special::Warps,
        ("%lanemask_eq", None) => Special::LanesEqual,
        ("%lanemask_lt", None) => Special::LanesLess,
        ("%lanemask_le", None) => Special::LanesLessEqual,
        ("%lanemask_gt", None) => Special::LanesGreater,
        ("%lanemask_ge", None) => Special::LanesGreaterEqual,
        ("%dynamic_smem_size", None) => Special::DynamicShared,
        ("%total_smem_size", None) => Special::TotalShared,
        _ => return None,
    })
}
