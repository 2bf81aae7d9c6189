//! A pickle reader that only builds data: dictionaries, lists, tuples, strings, numbers, and descriptions of tensors.
//!
//! A pickle is a program for a stack machine, and Python's own machine calls whatever function the file names. This one
//! calls nothing: `collections.OrderedDict` becomes a dictionary, the two functions that PyTorch uses to rebuild
//! tensors become a [`View`], and every other name becomes an [`Object`] that holds the name and its arguments.
//!
//! Memory is bounded by the length of the input: every instruction makes at most one node, nodes share names and views
//! derived from others, and copies are limited in length. The instructions of protocols 2 to 5, which PyTorch writes,
//! are supported; the text forms of protocol 0 are not.

use super::MOST_DIMENSIONS;
use std::collections::HashMap;
use std::rc::Rc;

/// Largest length in bytes of a name composed of two others, which many nodes may share.
const LONGEST_GLOBAL: usize = 256;

/// Index of a node in [`Pickle::nodes`]. Containers refer to their parts by it, so shared and cyclic parts cost
/// nothing.
pub type Id = usize;

#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Rc<str>),
    Bytes,
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function, by its dotted name.
    Global(Rc<str>),
    Storage(Rc<Storage>),
    Tensor(Rc<View>),
    Object(Object),
}

/// A run of numbers in the archive.
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    /// PyTorch's class, such as `torch.FloatStorage`.
    pub class: Rc<str>,
    /// Name of the archive's entry, below `data/`.
    pub key: Rc<str>,
}

/// A strided view of a storage; offset and strides in elements.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    pub storage: Rc<Storage>,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub stride: Vec<usize>,
}

/// The result that a call would have had; the call is not made.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub class: Rc<str>,
    pub elements: Vec<Id>,
    pub items: Vec<(Id, Id)>,
    pub state: Option<Id>,
}

impl Object {
    fn of(class: Rc<str>) -> Object {
        Object { class, elements: Vec::new(), items: Vec::new(), state: None }
    }
}

/// A parsed pickle.
#[derive(Debug)]
pub struct Pickle {
    pub nodes: Vec<Node>,
    pub root: Id,
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

type Outcome<T> = Result<T, String>;

/// Runs the pickle. Errors give the byte.
pub fn parse(bytes: &[u8]) -> Outcome<Pickle> {
    let mut machine =
        Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    loop {
        let at = machine.at;
        match machine.step() {
            Ok(true) => {}
            Ok(false) => break,
            Err(reason) => return Err(format!("byte {at}: {reason}")),
        }
    }
    let root = machine.stack.pop().ok_or("the pickle ends with an empty stack")?;
    Ok(Pickle { nodes: machine.nodes, root })
}

impl Machine<'_> {
    fn take(&mut self, n: usize) -> Outcome<&[u8]> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len()).ok_or("the pickle is truncated")?;
        let part = &self.bytes[self.at..end];
        self.at = end;
        Ok(part)
    }

    /// A little-endian unsigned number of `n` ≤ 8 bytes.
    fn unsigned(&mut self, n: usize) -> Outcome<u64> {
        Ok(self.take(n)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn length(&mut self, n: usize) -> Outcome<usize> {
        usize::try_from(self.unsigned(n)?).map_err(|_| "a length is too large for this machine".into())
    }

    fn text(&mut self, n: usize) -> Outcome<String> {
        // Python strings may hold non-text, such as the bytes of a file name
        Ok(String::from_utf8_lossy(self.take(n)?).into_owned())
    }

    fn line(&mut self) -> Outcome<String> {
        let end = self.bytes[self.at..].iter().position(|&b| b == b'\n').ok_or("the pickle is truncated")?;
        let line = self.text(end)?;
        self.at += 1;
        Ok(line)
    }

    fn push(&mut self, node: Node) -> Outcome<()> {
        self.nodes.push(node);
        self.stack.push(self.nodes.len() - 1);
        Ok(())
    }

    /// Pops the top of the stack above the last open mark. Errors: there is nothing.
    fn pop(&mut self) -> Outcome<Id> {
        if self.stack.len() <= self.marks.last().copied().unwrap_or(0) {
            return Err("the stack is empty".into());
        }
        self.stack.pop().ok_or_else(|| "the stack is empty".into())
    }

    fn top(&self) -> Outcome<Id> {
        self.stack.last().copied().ok_or_else(|| "the stack is empty".into())
    }

    fn pop_mark(&mut self) -> Outcome<Vec<Id>> {
        let height = self.marks.pop().ok_or("no open mark")?;
        Ok(self.stack.split_off(height.min(self.stack.len())))
    }

    fn pop_several(&mut self, n: usize) -> Outcome<Vec<Id>> {
        let mut parts = (0..n).map(|_| self.pop()).collect::<Outcome<Vec<_>>>()?;
        parts.reverse();
        Ok(parts)
    }

    fn get(&mut self, key: u64) -> Outcome<()> {
        let id = u32::try_from(key).ok().and_then(|key| self.memo.get(&key)).ok_or(format!("memo {key} is not set"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn put(&mut self, key: u64) -> Outcome<()> {
        let key = u32::try_from(key).map_err(|_| format!("memo number {key} is out of range"))?;
        self.memo.insert(key, self.top()?);
        Ok(())
    }

    /// Runs one instruction; false at the end.
    fn step(&mut self) -> Outcome<bool> {
        let code = self.take(1)?[0];
        match code {
            b'.' => return Ok(false),
            0x80 => match self.unsigned(1)? {
                2..=5 => Ok(()),
                version => Err(format!("pickle protocol {version} is not supported (expected 2 to 5)")),
            },
            0x95 => self.take(8).map(|_| ()), // a frame is a hint for buffering
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(|_| ()),
            b'1' => self.pop_mark().map(|_| ()),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
                Ok(())
            }
            b'h' => self.unsigned(1).and_then(|key| self.get(key)),
            b'j' => self.unsigned(4).and_then(|key| self.get(key)),
            b'q' => self.unsigned(1).and_then(|key| self.put(key)),
            b'r' => self.unsigned(4).and_then(|key| self.put(key)),
            0x94 => self.put(self.memo.len() as u64),
            b'N' | 0x88 | 0x89 | b'K' | b'M' | b'J' | b'G' | 0x8a | 0x8b => self.number(code),
            b'X' | 0x8c | 0x8d | b'U' | b'T' | b'C' | b'B' | 0x8e | 0x96 => self.string(code),
            b']' | b')' | b'}' | 0x8f | 0x85 | 0x86 | 0x87 | b't' | b'l' | b'd' | 0x91 => self.container(code),
            b'a' | b'e' | b's' | b'u' | 0x90 => self.fill(code),
            b'c' | 0x93 | b'R' | 0x81 | 0x92 | b'b' | b'Q' => self.construct(code),
            _ => Err(format!("instruction {code:#04x} is not one that PyTorch writes")),
        }?;
        Ok(true)
    }

    fn number(&mut self, code: u8) -> Outcome<()> {
        let node = match code {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'K' => Node::Int(self.unsigned(1)? as i64),
            b'M' => Node::Int(self.unsigned(2)? as i64),
            b'J' => Node::Int(i64::from(self.unsigned(4)? as u32 as i32)),
            b'G' => Node::Float(f64::from_bits(self.unsigned(8)?.swap_bytes())),
            _ => {
                let n = self.length(if code == 0x8a { 1 } else { 4 })?;
                long(self.take(n)?)
            }
        };
        self.push(node)
    }

    fn string(&mut self, code: u8) -> Outcome<()> {
        let n = self.length(match code {
            0x8c | b'U' | b'C' => 1,
            0x8d | 0x8e | 0x96 => 8,
            _ => 4,
        })?;
        let node = match code {
            b'X' | 0x8c | 0x8d | b'U' | b'T' => Node::Text(self.text(n)?.into()),
            _ => {
                self.take(n)?;
                Node::Bytes
            }
        };
        self.push(node)
    }

    fn container(&mut self, code: u8) -> Outcome<()> {
        let node = match code {
            b']' | 0x8f => Node::List(Vec::new()),
            b')' => Node::Tuple(Vec::new()),
            b'}' => Node::Dict(Vec::new()),
            0x85..=0x87 => Node::Tuple(self.pop_several(usize::from(code - 0x84))?),
            b't' => Node::Tuple(self.pop_mark()?),
            b'l' | 0x91 => Node::List(self.pop_mark()?),
            _ => Node::Dict(pairs(self.pop_mark()?)?),
        };
        self.push(node)
    }

    /// Appends to the list, set or dictionary below on the stack.
    fn fill(&mut self, code: u8) -> Outcome<()> {
        let parts = match code {
            b'a' => self.pop_several(1)?,
            b's' => self.pop_several(2)?,
            _ => self.pop_mark()?,
        };
        let below = self.top()?;
        let by_key = matches!(code, b's' | b'u');
        match &mut self.nodes[below] {
            Node::List(list) if !by_key => list.extend(parts),
            Node::Dict(dict) if by_key => dict.extend(pairs(parts)?),
            Node::Object(object) if !by_key => object.elements.extend(parts),
            Node::Object(object) => object.items.extend(pairs(parts)?),
            _ => return Err("entries for something that is not a container".into()),
        }
        Ok(())
    }

    fn construct(&mut self, code: u8) -> Outcome<()> {
        match code {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Node::Global(format!("{module}.{name}").into()))
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Text(module), Node::Text(name)) = (&self.nodes[module], &self.nodes[name]) else {
                    return Err("a global whose name is not text".into());
                };
                if module.len() + name.len() > LONGEST_GLOBAL {
                    return Err(format!("a global has too long a name ({} bytes)", module.len() + name.len()));
                }
                self.push(Node::Global(format!("{module}.{name}").into()))
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(Node::Storage(storage.into()))
            }
            b'b' => {
                let (state, object) = (self.pop()?, self.top()?);
                // for dictionaries and tensors these are attributes, not data
                if let Node::Object(object) = &mut self.nodes[object] {
                    object.state = Some(state);
                }
                Ok(())
            }
            _ => {
                if code == 0x92 {
                    self.pop()?; // keyword arguments
                }
                let (arguments, function) = (self.pop()?, self.pop()?);
                let node = self.rebuild(function, arguments)?;
                self.push(node)
            }
        }
    }

    /// The node that represents `function(*arguments)`.
    fn rebuild(&self, function: Id, arguments: Id) -> Outcome<Node> {
        let arguments = self.tuple(arguments)?;
        let name = match &self.nodes[function] {
            Node::Global(name) => name,
            Node::Object(object) => &object.class,
            _ => return Err("a call of something that is not a function".into()),
        };
        match name.as_ref() {
            "collections.OrderedDict" if arguments.is_empty() => Ok(Node::Dict(Vec::new())),
            "torch._utils._rebuild_tensor_v2" => Ok(Node::Tensor(self.tensor(arguments)?.into())),
            // of a subclass, such as a Buffer: (function, class, its arguments, state)
            "torch._tensor._rebuild_from_type_v2" => match arguments {
                [function, _, arguments, _] => self.rebuild(*function, *arguments),
                _ => Err("a tensor of a subclass has the wrong number of arguments".into()),
            },
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                let data = arguments.first().ok_or("a parameter has no tensor")?;
                match &self.nodes[*data] {
                    Node::Tensor(view) => Ok(Node::Tensor(view.clone())),
                    _ => Err("a parameter has no tensor".into()),
                }
            }
            _ => Ok(Node::Object(Object::of(name.clone()))),
        }
    }

    fn tuple(&self, id: Id) -> Outcome<&[Id]> {
        match &self.nodes[id] {
            Node::Tuple(parts) => Ok(parts),
            _ => Err("arguments are not a tuple".into()),
        }
    }

    /// `("storage", class, key, device, number of elements)`
    fn storage(&self, id: Id) -> Outcome<Storage> {
        let parts: Vec<&Node> = self.tuple(id)?.iter().map(|&part| &self.nodes[part]).collect();
        match parts[..] {
            [Node::Text(kind), Node::Global(class), Node::Text(key), Node::Text(_), Node::Int(_)]
                if kind.as_ref() == "storage" =>
            {
                Ok(Storage { class: class.clone(), key: key.clone() })
            }
            _ => Err("a reference outside the pickle is not a tensor storage".into()),
        }
    }

    /// `(storage, offset, shape, stride, …)`
    fn tensor(&self, arguments: &[Id]) -> Outcome<View> {
        let [storage, offset, shape, stride, ..] = arguments else {
            return Err("a tensor has too few arguments".into());
        };
        // flags that change the numbers of a view rather than their positions
        if let Some(Node::Dict(marks)) = arguments.get(6).map(|&marks| &self.nodes[marks]) {
            if marks.iter().any(|&(_, value)| matches!(self.nodes[value], Node::Bool(true))) {
                return Err(
                    "a tensor is a negated or conjugated view: save it after `resolve_neg()` or `resolve_conj()`"
                        .into(),
                );
            }
        }
        let Node::Storage(storage) = &self.nodes[*storage] else { return Err("a tensor has no storage".into()) };
        let sizes = |id: Id| {
            let parts = self.tuple(id)?;
            if parts.len() > MOST_DIMENSIONS {
                return Err(format!("a tensor of {} dimensions is not supported", parts.len()));
            }
            parts.iter().map(|&part| self.size(part)).collect::<Outcome<Vec<usize>>>()
        };
        let (shape, stride) = (sizes(*shape)?, sizes(*stride)?);
        if shape.len() != stride.len() {
            return Err(format!("a tensor has {} sizes but {} strides", shape.len(), stride.len()));
        }
        Ok(View { storage: storage.clone(), offset: self.size(*offset)?, shape, stride })
    }

    fn size(&self, id: Id) -> Outcome<usize> {
        match self.nodes[id] {
            Node::Int(value) => {
                usize::try_from(value).map_err(|_| format!("a tensor has the negative size, stride or offset {value}"))
            }
            _ => Err("a size, stride or offset of a tensor is not an integer".into()),
        }
    }
}

/// Little-endian two's complement; beyond 64 bits only the type, integer, is kept.
fn long(bytes: &[u8]) -> Node {
    if bytes.len() > 8 {
        return Node::Object(Object::of("int".into()));
    }
    let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { -1i64 } else { 0 };
    Node::Int(bytes.iter().rev().fold(sign, |value, &byte| value << 8 | i64::from(byte)))
}

fn pairs(parts: Vec<Id>) -> Outcome<Vec<(Id, Id)>> {
    match parts.len() % 2 {
        0 => Ok(parts.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()),
        _ => Err("a key without a value".into()),
    }
}
