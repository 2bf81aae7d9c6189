//! PTX to code. Of the language as much as NVIDIA's compiler makes of `cuda/`; whatever else is an error.

use super::alu::{self, Function};
use super::code::{
    computing, window, Address, Call, Code, Kind, Meeting, Module, Operation, Place, Shuffle, Space, Special, Vote,
    ARGUMENT, LOCAL, MODULE, SHARED,
};
use super::text::{cleaned, declaration, inside, kind_of, number, operands, pieces, Declaration, Piece};
use std::collections::HashMap;

type Result<T> = std::result::Result<T, String>;

/// The next multiple of `align`; what is put there ends there.
fn put(end: &mut usize, bytes: usize, align: usize) -> usize {
    let offset = end.next_multiple_of(align);
    *end = offset + bytes;
    offset
}

/// What a name stands for.
#[derive(Clone, Copy)]
enum Symbol {
    Register(u32),
    /// Of a function or a call.
    Parameter(Place),
    /// An address.
    Constant(u64),
    /// A place in a function's local memory.
    Local(u64),
}

#[derive(Default)]
struct Parser<'a> {
    module: Module,
    symbols: HashMap<&'a str, Symbol>,
    /// Of the function, and of what is open in it.
    scopes: Vec<HashMap<&'a str, Symbol>>,
    function: usize,
    constants: HashMap<u64, u32>,
    labels: HashMap<&'a str, u32>,
    /// Branches before their labels are known.
    branches: Vec<(usize, &'a str)>,
}

/// The functions of a text, and what they need beside.
pub fn parse(text: &str) -> Result<Module> {
    let text = cleaned(text);
    let mut parser = Parser::default();
    let pieces = pieces(&text);
    parser.share(&pieces)?;
    for (line, piece) in pieces {
        parser.take(line, piece).map_err(|said| format!("line {line}: {said}"))?;
    }
    match parser.module.functions.iter().find(|function| function.operations.is_empty()) {
        Some(function) => Err(format!("{} is called and not there", function.name)),
        None => Ok(parser.module),
    }
}

impl<'a> Parser<'a> {
    fn take(&mut self, line: usize, piece: Piece<'a>) -> Result<()> {
        match piece {
            Piece::Header(header) => self.begin(header).ok_or(format!("{header:?} is not understood")),
            Piece::Open => {
                self.scopes.push(HashMap::new());
                Ok(())
            }
            Piece::Close => {
                self.scopes.pop();
                match self.scopes.is_empty() {
                    true => self.end(),
                    false => Ok(()),
                }
            }
            Piece::Label(label) => {
                let at = self.code().operations.len() as u32;
                self.labels.insert(label, at);
                Ok(())
            }
            Piece::Statement("") => Ok(()),
            Piece::Statement(text) if text.starts_with('.') => {
                self.declare(text).ok_or(format!("{text:?} is not understood"))
            }
            Piece::Statement(text) => {
                let done = self.statement(line as u32, text);
                done.map_err(|said| format!("{said} in {text:?}"))
            }
        }
    }

    fn push(&mut self, line: u32, operation: Operation) {
        self.code().operations.push(operation);
        self.code().lines.push(line);
    }

    /// An instruction, as one or two operations. Where one thread runs at a time, all see memory in the same order.
    fn statement(&mut self, line: u32, text: &'a str) -> Result<()> {
        let guarded = text.strip_prefix('@').and_then(|rest| rest.split_once(char::is_whitespace));
        let (condition, text) = match guarded {
            Some((condition, rest)) if !rest.trim().starts_with("bra") => (Some(condition), rest.trim()),
            _ => (None, text),
        };
        let opcode = text.split(char::is_whitespace).next().unwrap_or("");
        if opcode.starts_with("membar") || opcode.starts_with("fence") {
            return Ok(());
        }
        if opcode.contains(".volatile.") {
            self.push(line, Operation::Turn);
        }
        if let Some(condition) = condition {
            let (register, over) = (self.operand(condition.trim_start_matches('!'))?, self.code().operations.len() + 2);
            let wanted = condition.starts_with('!');
            self.push(line, Operation::BranchIf { condition: register, wanted, to: over as u32 });
        }
        let operation = match opcode.split('.').nth(2) {
            Some("and" | "or" | "xor") if opcode.starts_with("setp") && condition.is_none() => {
                self.compare(line, text)?
            }
            _ => self.instruction(text)?,
        };
        self.push(line, operation);
        Ok(())
    }

    /// `setp.HOW.AND.TYPE to, a, b, with`: a comparison, and what it makes with another condition.
    fn compare(&mut self, line: u32, text: &'a str) -> Result<Operation> {
        let (opcode, rest) = text.split_once(char::is_whitespace).ok_or("no operands")?;
        let &[to, a, b, with] = &operands(rest)[..] else { return Err("another number of operands".into()) };
        let words: Vec<&str> = opcode.split('.').collect();
        let comparison = [&words[..2], &words[3..]].concat().join(".");
        let function = alu::find(&comparison).ok_or(format!("{comparison} is unknown"))?;
        let registers = [self.register(), self.operand(a)?, self.operand(b)?];
        let operation = computing(function, &registers, false).ok_or("another number of operands")?;
        self.push(line, operation);
        let function = alu::find(&format!("{}.pred", words[2])).ok_or(format!("{opcode} is unknown"))?;
        let all = [self.operand(to)?, registers[0], self.operand(with)?];
        computing(function, &all, false).ok_or("another number of operands".into())
    }

    fn code(&mut self) -> &mut Code {
        &mut self.module.functions[self.function]
    }

    fn id_of(&mut self, name: &str) -> usize {
        let functions = &mut self.module.functions;
        *self.module.names.entry(name.to_string()).or_insert_with(|| {
            functions.push(Code { name: name.to_string(), ..Code::default() });
            functions.len() - 1
        })
    }

    /// A function's header: what it returns, its name, its parameters, and what a kernel promises.
    fn begin(&mut self, header: &'a str) -> Option<()> {
        let kernel = header.contains(".entry");
        let rest = header.split_once(if kernel { ".entry" } else { ".func" })?.1.trim();
        let (returns, rest) = rest.strip_prefix('(').map_or(Some(("", rest)), |rest| rest.split_once(')'))?;
        let (name, rest) = rest.split_once('(')?;
        let (arguments, promises) = rest.split_once(')')?;
        self.function = self.id_of(name.trim());
        self.scopes = vec![HashMap::new()];
        self.constants.clear();
        self.labels.clear();
        self.code().returns = self.parameters(returns)?;
        match kernel {
            true => self.argument(arguments)?,
            false => self.code().arguments = self.parameters(arguments)?,
        }
        if let Some((_, most)) = promises.split_once(".maxntid") {
            let words = most.split([',', ' ', '\n', '\t']).filter(|word| !word.is_empty());
            self.code().most_threads = Some(words.map_while(|word| word.parse::<u32>().ok()).product());
        }
        Some(())
    }

    fn parameters(&mut self, text: &'a str) -> Option<Vec<Place>> {
        operands(text).into_iter().map(|text| self.parameter(text)).collect()
    }

    fn parameter(&mut self, text: &'a str) -> Option<Place> {
        let Declaration { name, bytes, align, .. } = declaration(text)?;
        let place = Place { offset: put(&mut self.code().parameters, bytes, align), bytes };
        self.scopes.last_mut()?.insert(name, Symbol::Parameter(place));
        Some(place)
    }

    /// Of a kernel.
    fn argument(&mut self, text: &'a str) -> Option<()> {
        for text in operands(text) {
            let Declaration { name, bytes, align, .. } = declaration(text)?;
            let offset = put(&mut self.code().argument, bytes, align);
            self.code().arguments.push(Place { offset, bytes });
            self.scopes.last_mut()?.insert(name, Symbol::Constant(ARGUMENT + offset as u64));
        }
        Some(())
    }

    fn end(&mut self) -> Result<()> {
        for (at, label) in std::mem::take(&mut self.branches) {
            let place = *self.labels.get(label).ok_or(format!("no label {label}"))?;
            match &mut self.code().operations[at] {
                Operation::Branch(to) | Operation::BranchIf { to, .. } => *to = place,
                _ => unreachable!(),
            }
        }
        Ok(())
    }

    fn declare(&mut self, text: &'a str) -> Option<()> {
        let (what, rest) = text.split_once(char::is_whitespace)?;
        match what {
            ".reg" => self.registers(rest.trim())?,
            ".param" => drop(self.parameter(text)?),
            ".local" => {
                let Declaration { name, bytes, align, .. } = declaration(text)?;
                let offset = put(&mut self.code().local, bytes, align);
                self.scopes.last_mut()?.insert(name, Symbol::Local(offset as u64));
            }
            ".extern" | ".shared" if text.contains(".shared") => (),
            ".global" | ".const" => self.data(rest)?,
            ".func" | ".extern" | ".visible" | ".weak" if text.contains(".func") => (),
            ".pragma" => (),
            _ => return None,
        }
        Some(())
    }

    /// All shared memory: what a launch asks for lies behind what has a size.
    fn share(&mut self, pieces: &[(usize, Piece<'a>)]) -> Result<()> {
        for asked in [false, true] {
            for (line, piece) in pieces {
                let &Piece::Statement(text) = piece else { continue };
                if !(text.starts_with(".shared") || text.starts_with(".extern .shared")) {
                    continue;
                }
                let declared = declaration(text).ok_or(format!("line {line}: {text:?} is not understood"))?;
                if asked == (declared.bytes == 0) {
                    let offset = put(&mut self.module.shared, declared.bytes, declared.align);
                    self.symbols.insert(declared.name, Symbol::Constant(offset as u64));
                }
            }
        }
        Ok(())
    }

    /// Names of a scope. Those by number, `%r<9>`, are known by their first use.
    fn registers(&mut self, text: &'a str) -> Option<()> {
        let (_, names) = text.split_once(char::is_whitespace)?;
        for name in operands(names).into_iter().filter(|name| !name.contains('<')) {
            let register = self.register();
            self.scopes.last_mut()?.insert(name, Symbol::Register(register));
        }
        Some(())
    }

    fn data(&mut self, text: &'a str) -> Option<()> {
        let (left, right) = text.split_once('=').unwrap_or((text, "{}"));
        let Declaration { name, bytes, align, element } = declaration(left)?;
        let offset = self.module.data.len().next_multiple_of(align);
        self.module.data.resize(offset + bytes, 0);
        let right = right.trim();
        for (i, value) in operands(inside(right, ['{', '}']).unwrap_or(right)).into_iter().enumerate() {
            let at = offset + i * element;
            self.module.data[at..at + element].copy_from_slice(&number(value)?.to_le_bytes()[..element]);
        }
        self.symbols.insert(name, Symbol::Constant(MODULE + offset as u64));
        Some(())
    }

    fn register(&mut self) -> u32 {
        self.code().registers.push(u64::MAX);
        self.code().registers.len() as u32 - 1
    }

    fn constant(&mut self, value: u64) -> u32 {
        if let Some(&register) = self.constants.get(&value) {
            return register;
        }
        let register = self.register();
        self.code().registers[register as usize] = value;
        self.constants.insert(value, register);
        register
    }

    fn symbol(&self, name: &str) -> Option<Symbol> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name)).or_else(|| self.symbols.get(name)).copied()
    }

    /// The register of a name or a number.
    fn operand(&mut self, text: &'a str) -> Result<u32> {
        match self.symbol(text) {
            Some(Symbol::Register(register)) => Ok(register),
            Some(Symbol::Constant(value)) => Ok(self.constant(value)),
            Some(_) => Err(format!("{text} is no number")),
            None if text.starts_with('%') => Ok(self.named(text)),
            None if text == "_" => Ok(self.register()),
            None => number(text).map(|value| self.constant(value)).ok_or(format!("{text} is unknown")),
        }
    }

    fn named(&mut self, name: &'a str) -> u32 {
        let register = self.register();
        self.scopes[0].insert(name, Symbol::Register(register));
        let special = match name {
            "%tid.x" => Special::Thread,
            "%ntid.x" => Special::Threads,
            "%ctaid.x" => Special::Block,
            "%nctaid.x" => Special::Blocks,
            "%lanemask_eq" => Special::OwnMask,
            _ => return register,
        };
        self.code().specials.push((special, register));
        register
    }

    /// Registers of operands that are all numbers.
    fn all(&mut self, operands: &[&'a str]) -> Result<Vec<u32>> {
        operands.iter().map(|text| self.operand(text)).collect()
    }

    /// `{a, b}`, or one alone.
    fn vector<const N: usize>(&mut self, text: &'a str) -> Result<([u32; N], usize)> {
        let parts = inside(text, ['{', '}']).map_or(vec![text], operands);
        let registers = self.all(&parts)?;
        let mut vector = [0; N];
        vector.get_mut(..registers.len()).ok_or("a vector is too long")?.copy_from_slice(&registers);
        Ok((vector, registers.len()))
    }

    /// `[NAME]` or `[NAME+NUMBER]`.
    fn address(&mut self, text: &'a str, space: Space) -> Result<Address> {
        let text = inside(text, ['[', ']']).ok_or(format!("{text} is no address"))?;
        let (name, offset) = text.split_once('+').unwrap_or((text, "0"));
        let offset = offset.parse().map_err(|_| format!("{text} is not understood"))?;
        let (space, base) = match (self.symbol(name), space) {
            (Some(Symbol::Parameter(place)), Space::Parameters) => (space, self.constant(place.offset as u64)),
            // the kernel's
            (_, Space::Parameters) => (Space::Generic, self.operand(name)?),
            _ => (space, self.operand(name)?),
        };
        Ok(Address { space, base, offset })
    }

    fn instruction(&mut self, text: &'a str) -> Result<Operation> {
        if let Some(guarded) = text.strip_prefix('@') {
            return self.branch_if(guarded);
        }
        let (opcode, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let operands = operands(rest);
        match opcode.split('.').next().unwrap() {
            "bra" => Ok(self.branch(&operands, Operation::Branch(0))),
            "call" => self.call(&operands),
            "ret" => Ok(Operation::Return),
            "bar" => self.barrier(opcode, &operands),
            "ld" | "st" => self.transfer(opcode, &operands),
            "atom" | "red" => self.atomic(opcode, &operands),
            "cp" => self.copy(opcode, &operands),
            "shfl" => self.shuffle(opcode, &operands),
            "vote" => self.vote(opcode, &operands),
            "mma" => self.multiply(opcode, &operands),
            "cvta" => self.convert_address(opcode, &operands),
            "mov" => self.copy_register(opcode, &operands),
            // which others are at the same place is nothing that a program may rely on
            "activemask" => self.compute("mov.b32", &[operands.first().copied().unwrap_or(""), "%lanemask_eq"]),
            _ => self.compute(opcode, &operands),
        }
    }

    fn compute(&mut self, opcode: &'a str, operands: &[&'a str]) -> Result<Operation> {
        let function = alu::find(opcode).ok_or(format!("{opcode} is unknown"))?;
        let registers = self.all(operands)?;
        computing(function, &registers, opcode.contains(".cc.")).ok_or("another number of operands".into())
    }
}

impl<'a> Parser<'a> {
    fn branch(&mut self, operands: &[&'a str], operation: Operation) -> Operation {
        let at = self.code().operations.len();
        self.branches.push((at, operands[0]));
        operation
    }

    /// What comes after `@`.
    fn branch_if(&mut self, text: &'a str) -> Result<Operation> {
        let (condition, rest) = text.split_once(char::is_whitespace).ok_or("a condition of nothing")?;
        let label = rest.trim().strip_prefix("bra").ok_or("only branches have conditions")?;
        let label = label.trim_start_matches(".uni").trim();
        let condition = self.operand(condition.trim_start_matches('!'))?;
        Ok(self.branch(&[label], Operation::BranchIf { condition, wanted: !text.starts_with('!'), to: 0 }))
    }

    /// `(RETURNS), NAME, (ARGUMENTS)`, either of which may be missing.
    fn call(&mut self, operands: &[&'a str]) -> Result<Operation> {
        let at = operands.iter().position(|text| !text.starts_with('(')).ok_or("no name")?;
        let mut places = |texts: &[&'a str]| match texts {
            [] => Ok(Vec::new()),
            [text] => self.places(text),
            _ => Err("too many lists".into()),
        };
        let (returns, arguments) = (places(&operands[..at])?, places(&operands[at + 1..])?);
        let function = self.id_of(operands[at]);
        Ok(Operation::Call(Box::new(Call { function, arguments, returns })))
    }

    fn places(&mut self, text: &'a str) -> Result<Vec<Place>> {
        let names = operands(inside(text, ['(', ')']).ok_or("a list is missing")?);
        let place = |name: &&str| match self.symbol(name) {
            Some(Symbol::Parameter(place)) => Ok(place),
            _ => Err(format!("{name} is no parameter")),
        };
        names.iter().map(place).collect()
    }

    fn barrier(&mut self, opcode: &str, operands: &[&'a str]) -> Result<Operation> {
        match (opcode, operands) {
            ("bar.sync", ["0"]) => Ok(Operation::Barrier),
            ("bar.warp.sync", [mask]) => Ok(Operation::Meet(Box::new(Meeting::Wait { mask: self.operand(mask)? }))),
            _ => Err("a barrier of another kind".into()),
        }
    }

    fn transfer(&mut self, opcode: &'a str, operands: &[&'a str]) -> Result<Operation> {
        let Modifiers { space, kind, acquires } = modifiers(opcode)?;
        let &[left, right] = operands else { return Err("another number of operands".into()) };
        let load = opcode.starts_with("ld");
        let (numbers, address) = if load { (left, right) } else { (right, left) };
        let (registers, count) = self.vector::<4>(numbers)?;
        let address = self.address(address, space)?;
        match (load, acquires) {
            _ if count != usize::from(kind.count) => Err("a vector of another length".into()),
            (true, true) => Ok(Operation::Look { from: address, to: registers[0], kind }),
            (true, false) => Ok(Operation::Load { from: address, to: registers, kind }),
            (false, _) => Ok(Operation::Store { to: address, from: registers, kind }),
        }
    }

    /// `atom` gives what was there before, `red` does not.
    fn atomic(&mut self, opcode: &'a str, operands: &[&'a str]) -> Result<Operation> {
        let Modifiers { space, kind, .. } = modifiers(opcode)?;
        let (old, rest) = match operands {
            [old, rest @ ..] if opcode.starts_with("atom") => (self.operand(old)?, rest),
            rest => (self.register(), rest),
        };
        let &[address, value] = rest else { return Err("another number of operands".into()) };
        let words: Vec<&str> = opcode.rsplitn(3, '.').take(2).collect();
        let Some(Function::Two(function)) = alu::find(&format!("{}.{}", words[1], words[0])) else {
            return Err(format!("{opcode} is unknown"));
        };
        Ok(Operation::Atomic { at: self.address(address, space)?, old, value: self.operand(value)?, kind, function })
    }

    fn copy(&mut self, opcode: &str, operands: &[&'a str]) -> Result<Operation> {
        match (opcode, operands) {
            ("cp.async.wait_all", []) => Ok(Operation::Arrived),
            ("cp.async.ca.shared.global" | "cp.async.cg.shared.global", [to, from, bytes]) => {
                let (to, from) = (self.address(to, Space::Shared)?, self.address(from, Space::Global)?);
                let bytes = bytes.parse().ok().filter(|bytes| matches!(bytes, 4 | 8 | 16));
                Ok(Operation::CopyLater { to, from, bytes: bytes.ok_or("a copy of another size")? })
            }
            _ => Err(format!("{opcode} is unknown")),
        }
    }

    fn shuffle(&mut self, opcode: &str, operands: &[&'a str]) -> Result<Operation> {
        let how = match opcode {
            "shfl.sync.bfly.b32" => Shuffle::Butterfly,
            "shfl.sync.idx.b32" => Shuffle::Index,
            "shfl.sync.up.b32" => Shuffle::Up,
            "shfl.sync.down.b32" => Shuffle::Down,
            _ => return Err(format!("{opcode} is unknown")),
        };
        let (to, there) = operands[0].split_once('|').unwrap_or((operands[0], "_"));
        let (to, there) = (self.operand(to)?, self.operand(there)?);
        let &[value, by, clamp, mask] = &self.all(&operands[1..])?[..] else {
            return Err("another number of operands".into());
        };
        Ok(Operation::Meet(Box::new(Meeting::Shuffle { how, to, there, value, by, clamp, mask })))
    }

    fn vote(&mut self, opcode: &str, operands: &[&'a str]) -> Result<Operation> {
        let how = match opcode {
            "vote.sync.ballot.b32" => Vote::Ballot,
            "vote.sync.any.pred" => Vote::Any,
            "vote.sync.all.pred" => Vote::All,
            _ => return Err(format!("{opcode} is unknown")),
        };
        let &[to, value, mask] = &self.all(operands)?[..] else { return Err("another number of operands".into()) };
        Ok(Operation::Meet(Box::new(Meeting::Vote { how, to, value, mask })))
    }

    fn multiply(&mut self, opcode: &str, operands: &[&'a str]) -> Result<Operation> {
        const KNOWN: &str = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32";
        let &[d, a, b, c] = operands else { return Err("another number of operands".into()) };
        let ((d, _), (a, _), (b, _), (c, _)) = (self.vector(d)?, self.vector(a)?, self.vector(b)?, self.vector(c)?);
        match opcode {
            KNOWN => Ok(Operation::Meet(Box::new(Meeting::Multiply { d, a, b, c }))),
            _ => Err(format!("{opcode} is unknown")),
        }
    }

    /// Between generic addresses and those of a kind. Those of the card and of the argument are the same.
    fn convert_address(&mut self, opcode: &str, operands: &[&'a str]) -> Result<Operation> {
        let function: fn(u64) -> u64 = match opcode {
            "cvta.to.global.u64" | "cvta.global.u64" | "cvta.param.u64" => |address| address,
            "cvta.to.shared.u64" => |address| narrow(address, SHARED),
            "cvta.to.local.u64" => |address| narrow(address, LOCAL),
            "cvta.shared.u64" => |address| SHARED | address & 0xffff_ffff,
            "cvta.local.u64" => |address| LOCAL | address,
            _ => return Err(format!("{opcode} is unknown")),
        };
        let registers = self.all(operands)?;
        computing(Function::One(function), &registers, false).ok_or("another number of operands".into())
    }

    /// `mov`, which also takes numbers apart and puts them together, and says where local memory is.
    fn copy_register(&mut self, opcode: &'a str, operands: &[&'a str]) -> Result<Operation> {
        let &[to, from] = operands else { return Err("another number of operands".into()) };
        let bits = kind_of(opcode.rsplit('.').next().unwrap()).map_or(0, |(bytes, _)| u32::from(bytes) * 4);
        if let Some(Symbol::Local(offset)) = self.symbol(from) {
            return Ok(Operation::LocalAddress { to: self.operand(to)?, offset });
        }
        match (to.starts_with('{'), from.starts_with('{')) {
            (false, false) => self.compute(opcode, operands),
            (true, false) => Ok(Operation::Part { to: self.pair(to)?, whole: self.operand(from)?, bits }),
            (false, true) => Ok(Operation::Join { to: self.operand(to)?, halves: self.pair(from)?, bits }),
            (true, true) => Err("vectors on both sides".into()),
        }
    }

    fn pair(&mut self, text: &'a str) -> Result<[u32; 2]> {
        match self.vector(text)? {
            (pair, 2) => Ok(pair),
            _ => Err("numbers have two parts".into()),
        }
    }
}

/// Of what is no address of this kind, one where nothing is.
fn narrow(address: u64, of: u64) -> u64 {
    if window(address) == of {
        address & 0xffff_ffff
    } else {
        0xf000_0000
    }
}

struct Modifiers {
    space: Space,
    kind: Kind,
    acquires: bool,
}

/// Of what reads or writes memory. How far other threads see it in order is no matter where one runs at a time.
fn modifiers(opcode: &str) -> Result<Modifiers> {
    let mut found =
        Modifiers { space: Space::Generic, kind: Kind { bytes: 0, signed: false, count: 1 }, acquires: false };
    for word in opcode.split('.').skip(1) {
        match word {
            "global" => found.space = Space::Global,
            "shared" => found.space = Space::Shared,
            "local" => found.space = Space::Local,
            "param" => found.space = Space::Parameters,
            "acquire" => found.acquires = true,
            "v2" => found.kind.count = 2,
            "v4" => found.kind.count = 4,
            "nc" | "volatile" | "relaxed" | "release" | "gpu" | "cta" | "add" | "min" | "max" => (),
            _ => (found.kind.bytes, found.kind.signed) = kind_of(word).ok_or(format!("{opcode} is unknown"))?,
        }
    }
    Ok(found)
}
