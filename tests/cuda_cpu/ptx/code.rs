//! Programs as the machine runs them: instructions whose operands are numbers of registers.

use super::alu::Function;
use std::collections::HashMap;

/// Generic addresses say by their upper 16 bits what they are addresses of.
pub const SHARED: u64 = 0x0001 << 48;
pub const LOCAL: u64 = 0x0002 << 48;
/// Of the kernel's argument.
pub const ARGUMENT: u64 = 0x0003 << 48;
/// Constants of a program.
pub const MODULE: u64 = 0x0004 << 48;
/// As no pointer and no number looks.
pub const GLOBAL: u64 = 0x5a5a << 48;

/// The upper 16 bits.
pub fn window(address: u64) -> u64 {
    address & (0xffff << 48)
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Space {
    Generic,
    /// Of the card, or of the program.
    Global,
    Shared,
    Local,
    /// Of a call; the kernel's own is generic.
    Parameters,
}

/// A register and a distance.
#[derive(Clone, Copy)]
pub struct Address {
    pub space: Space,
    pub base: u32,
    pub offset: i32,
}

/// So many numbers, read or written at once.
#[derive(Clone, Copy)]
pub struct Kind {
    pub bytes: u8,
    pub signed: bool,
    pub count: u8,
}

impl Kind {
    pub fn size(self) -> usize {
        usize::from(self.bytes) * usize::from(self.count)
    }
}

/// Of the parameters of a function or a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    pub offset: usize,
    pub bytes: usize,
}

pub struct Call {
    pub function: usize,
    pub arguments: Vec<Place>,
    pub returns: Vec<Place>,
}

/// Whose value a lane gets.
#[derive(Clone, Copy)]
pub enum Shuffle {
    Butterfly,
    Index,
    Up,
    Down,
}

/// What lanes say together.
#[derive(Clone, Copy)]
pub enum Vote {
    /// Of each lane, a bit.
    Ballot,
    Any,
    All,
}

/// What lanes of a warp do together.
pub enum Meeting {
    /// `there`: whether the lane that the value is from is one.
    Shuffle {
        how: Shuffle,
        to: u32,
        there: u32,
        value: u32,
        by: u32,
        clamp: u32,
        mask: u32,
    },
    Vote {
        how: Vote,
        to: u32,
        value: u32,
        mask: u32,
    },
    Wait {
        mask: u32,
    },
    /// d = a b + c of 16 × 8 × 8 numbers.
    Multiply {
        d: [u32; 4],
        a: [u32; 4],
        b: [u32; 2],
        c: [u32; 4],
    },
}

pub enum Operation {
    One(fn(u64) -> u64, [u32; 2]),
    Two(fn(u64, u64) -> u64, [u32; 3]),
    Three(fn(u64, u64, u64) -> u64, [u32; 4]),
    Four(fn(u64, u64, u64, u64) -> u64, [u32; 5]),
    /// Whether what it carries is kept.
    Carrying(fn(u64, u64, u64, bool) -> (u64, bool), [u32; 4], bool),
    /// Two halves, the lower first, of so many bits.
    Join {
        to: u32,
        halves: [u32; 2],
        bits: u32,
    },
    Part {
        to: [u32; 2],
        whole: u32,
        bits: u32,
    },
    /// Of what the function has in local memory.
    LocalAddress {
        to: u32,
        offset: u64,
    },
    Load {
        from: Address,
        to: [u32; 4],
        kind: Kind,
    },
    Store {
        to: Address,
        from: [u32; 4],
        kind: Kind,
    },
    /// A number that others change, before which they have a turn.
    Look {
        from: Address,
        to: u32,
        kind: Kind,
    },
    Atomic {
        at: Address,
        old: u32,
        value: u32,
        kind: Kind,
        function: fn(u64, u64) -> u64,
    },
    /// A copy to shared memory that is there when it was waited for.
    CopyLater {
        to: Address,
        from: Address,
        bytes: usize,
    },
    Arrived,
    Branch(u32),
    BranchIf {
        condition: u32,
        wanted: bool,
        to: u32,
    },
    Call(Box<Call>),
    Return,
    Barrier,
    /// Before memory that lanes of a warp exchange without waiting for each other: those that are at the same place go on
    /// together, the earliest in the code first, as cards run them.
    Turn,
    Meet(Box<Meeting>),
}

/// Registers that are set when a thread begins.
#[derive(Clone, Copy, PartialEq)]
pub enum Special {
    Thread,
    Threads,
    Block,
    Blocks,
    /// A mask of the thread's lane alone.
    OwnMask,
}

#[derive(Default)]
pub struct Code {
    pub name: String,
    pub operations: Vec<Operation>,
    /// Of the text, for each of them.
    pub lines: Vec<u32>,
    /// What registers hold at first: constants, and what no number looks like.
    pub registers: Vec<u64>,
    pub specials: Vec<(Special, u32)>,
    /// Bytes of its parameters and of those of its calls, and of its local memory.
    pub parameters: usize,
    pub local: usize,
    pub arguments: Vec<Place>,
    pub returns: Vec<Place>,
    /// Of a kernel: the bytes of its argument, and how many threads a block has at most.
    pub argument: usize,
    pub most_threads: Option<u32>,
}

#[derive(Default)]
pub struct Module {
    pub functions: Vec<Code>,
    pub names: HashMap<String, usize>,
    pub data: Vec<u8>,
    /// Bytes of shared memory before what a launch asks for.
    pub shared: usize,
}

/// The operation of a function that computes. Errors: another number of operands.
pub fn computing(function: Function, registers: &[u32], keeps: bool) -> Option<Operation> {
    Some(match (function, registers) {
        (Function::One(f), &[to, a]) => Operation::One(f, [to, a]),
        (Function::Two(f), &[to, a, b]) => Operation::Two(f, [to, a, b]),
        (Function::Three(f), &[to, a, b, c]) => Operation::Three(f, [to, a, b, c]),
        (Function::Four(f), &[to, a, b, c, d]) => Operation::Four(f, [to, a, b, c, d]),
        (Function::Carrying(f), &[to, a, b]) => Operation::Carrying(f, [to, a, b, a], keeps),
        (Function::Carrying(f), &[to, a, b, c]) => Operation::Carrying(f, [to, a, b, c], keeps),
        _ => return None,
    })
}
