//! Runs kernels: every thread by itself until it waits, warps and lanes in an order from a seed, blocks one after the
//! other, or by turns where they are launched together.
//!
//! What it is strict about, so that mistakes show: every access lies in one array and is aligned as a whole; shared
//! memory has exactly the size that was asked for and holds NaN at first, as do registers; all threads of a block must
//! meet at the same barrier, all lanes that an instruction names at that instruction; blocks must not wait for each
//! other in vain; what is copied later is there when it was waited for, and not before.

use super::code::{
    window, Address, Call, Code, Kind, Module, Operation, Place, Space, Special, ARGUMENT, GLOBAL, LOCAL, MODULE,
    SHARED,
};
use super::warp::{meet, take_turns, WARP};

pub type Result<T> = std::result::Result<T, String>;

/// Of the parameters of calls, as of the other windows.
const PARAMETERS: u64 = 0x0005 << 48;
/// What a thread may take at a time before it counts as lost.
const MOST_STEPS: u64 = 1 << 33;

/// The card's arrays, by number; none where one was freed.
pub type Arrays = Vec<Option<Vec<u8>>>;

pub fn address_of(array: usize) -> u64 {
    GLOBAL | (array as u64) << 32
}

pub fn array_of(address: u64) -> usize {
    ((address - GLOBAL) >> 32) as usize
}

pub struct Launch<'a> {
    pub module: &'a Module,
    pub kernel: usize,
    pub grid: u32,
    pub threads: u32,
    /// Bytes, beside those of the program.
    pub shared: usize,
    pub argument: &'a [u8],
    pub together: bool,
    pub seed: u64,
}

/// What all threads have in common.
struct World<'a> {
    launch: &'a Launch<'a>,
    arrays: &'a mut Arrays,
    /// Whether any thread did more than look in vain.
    moved: bool,
    steps: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum State {
    Ready,
    AtBarrier,
    AtMeeting,
    AtTurn,
    Looking,
    #[default]
    Done,
}

/// Where a function's things begin, and its next operation.
#[derive(Clone, Copy)]
pub struct Frame {
    pub function: usize,
    pub at: usize,
    pub registers: usize,
    local: usize,
    parameters: usize,
}

#[derive(Default)]
pub struct Thread {
    pub state: State,
    index: u32,
    block: u32,
    pub frames: Vec<Frame>,
    pub registers: Vec<u64>,
    own: Own,
}

/// What a thread has beside its registers.
#[derive(Default)]
pub struct Own {
    local: Vec<u8>,
    parameters: Vec<u8>,
    carry: bool,
    /// To where, from where, how many bytes.
    copies: Vec<(u64, u64, usize)>,
    /// What it saw when it looked last.
    seen: Option<u64>,
    /// Whether others had a turn since it wanted to look.
    may_look: bool,
}

/// What a thread reaches from a function.
struct Reach<'a> {
    launch: &'a Launch<'a>,
    arrays: &'a mut Arrays,
    moved: &'a mut bool,
    shared: &'a mut [u8],
    own: &'a mut Own,
    frame: Frame,
}

impl Reach<'_> {
    /// A generic address.
    fn generic(&self, address: Address, registers: &[u64]) -> Result<u64> {
        let place = registers[address.base as usize].wrapping_add(address.offset as u64);
        Ok(match address.space {
            Space::Generic => place,
            Space::Global if matches!(window(place), GLOBAL | MODULE) => place,
            Space::Global => return Err(format!("{place:#x} is no address of the card's")),
            Space::Shared => SHARED | place & 0xffff_ffff,
            Space::Local => LOCAL | place & 0xffff_ffff,
            Space::Parameters => PARAMETERS + self.frame.parameters as u64 + place,
        })
    }

    /// Where that is in its array.
    fn offset(address: u64, size: usize) -> Result<usize> {
        // sizes are powers of two
        match address & (size as u64 - 1) {
            0 if window(address) == GLOBAL => Ok((address & 0xffff_ffff) as usize),
            0 => Ok((address & !(0xffff << 48)) as usize),
            _ => Err(format!("{size} bytes at {address:#x} are misaligned")),
        }
    }

    fn read(&self, address: u64, size: usize) -> Result<&[u8]> {
        let offset = Self::offset(address, size)?;
        let array = match window(address) {
            GLOBAL => self.arrays.get(array_of(address)).and_then(|array| array.as_deref()),
            SHARED => Some(&*self.shared),
            LOCAL => Some(&self.own.local[..]),
            ARGUMENT => Some(self.launch.argument),
            MODULE => Some(&self.launch.module.data[..]),
            PARAMETERS => Some(&self.own.parameters[..]),
            _ => None,
        };
        array.and_then(|array| array.get(offset..offset + size)).ok_or_else(|| nothing(address, size, array))
    }

    fn write(&mut self, address: u64, size: usize) -> Result<&mut [u8]> {
        let offset = Self::offset(address, size)?;
        let array = match window(address) {
            GLOBAL => self.arrays.get_mut(array_of(address)).and_then(|array| array.as_deref_mut()),
            SHARED => Some(&mut *self.shared),
            LOCAL => Some(&mut self.own.local[..]),
            PARAMETERS => Some(&mut self.own.parameters[..]),
            _ => None,
        };
        array.and_then(|array| array.get_mut(offset..offset + size)).ok_or_else(|| nothing(address, size, None))
    }

    fn load(&self, from: Address, to: &[u32; 4], kind: Kind, registers: &mut [u64]) -> Result<()> {
        let address = self.generic(from, registers)?;
        let (bytes, each) = (self.read(address, kind.size())?, usize::from(kind.bytes));
        for (i, &to) in to[..kind.count.into()].iter().enumerate() {
            registers[to as usize] = of_bytes(&bytes[i * each..(i + 1) * each], kind.signed);
        }
        Ok(())
    }

    fn store(&mut self, to: Address, from: &[u32; 4], kind: Kind, registers: &[u64]) -> Result<()> {
        let address = self.generic(to, registers)?;
        let (bytes, each) = (self.write(address, kind.size())?, usize::from(kind.bytes));
        for (i, &from) in from[..kind.count.into()].iter().enumerate() {
            bytes[i * each..(i + 1) * each].copy_from_slice(&registers[from as usize].to_le_bytes()[..each]);
        }
        Ok(())
    }

    /// What was there before.
    fn change(&mut self, at: u64, kind: Kind, function: impl Fn(u64) -> u64) -> Result<u64> {
        let bytes = self.write(at, kind.size())?;
        let old = of_bytes(bytes, kind.signed);
        bytes.copy_from_slice(&function(old).to_le_bytes()[..bytes.len()]);
        Ok(old)
    }

    fn copy(&mut self, (to, from, size): (u64, u64, usize)) -> Result<()> {
        let mut bytes = [0; 16];
        bytes[..size].copy_from_slice(self.read(from, size)?);
        self.write(to, size)?.copy_from_slice(&bytes[..size]);
        Ok(())
    }

    /// An operation after which the next one follows.
    fn work(&mut self, operation: &Operation, registers: &mut [u64]) -> Result<()> {
        let of = |register: u32| registers[register as usize];
        let (to, value) = match *operation {
            Operation::Load { from, ref to, kind } => return self.load(from, to, kind, registers),
            Operation::Store { to, ref from, kind } => return self.store(to, from, kind, registers),
            Operation::CopyLater { to, from, bytes } => {
                let places = (self.generic(to, registers)?, self.generic(from, registers)?, bytes);
                self.own.copies.push(places);
                return Ok(());
            }
            Operation::Arrived => {
                let copies = std::mem::take(&mut self.own.copies);
                return copies.into_iter().try_for_each(|copy| self.copy(copy));
            }
            Operation::Part { to: [low, high], whole, bits } => {
                let whole = of(whole);
                (registers[low as usize], registers[high as usize]) = (whole & mask(bits), whole >> bits & mask(bits));
                return Ok(());
            }
            Operation::Join { to, halves: [low, high], bits } => (to, of(low) & mask(bits) | of(high) << bits),
            Operation::Four(f, [to, a, b, c, d]) => (to, f(of(a), of(b), of(c), of(d))),
            Operation::Carrying(f, [to, a, b, c], keeps) => {
                let (value, carry) = f(of(a), of(b), of(c), self.own.carry);
                self.own.carry = if keeps { carry } else { self.own.carry };
                (to, value)
            }
            Operation::LocalAddress { to, offset } => (to, self.frame.local as u64 + offset),
            Operation::Atomic { at, old, value, kind, function } => {
                let (at, value) = (self.generic(at, registers)?, of(value));
                (old, self.change(at, kind, |old| function(old, value))?)
            }
            Operation::Look { from, to, kind } => {
                self.load(from, &[to; 4], kind, registers)?;
                self.looked(registers[to as usize]);
                return Ok(());
            }
            _ => unreachable!("an operation of the thread's"),
        };
        registers[to as usize] = value;
        Ok(())
    }

    fn looked(&mut self, value: u64) {
        *self.moved |= self.own.seen != Some(value);
        (self.own.seen, self.own.may_look) = (Some(value), false);
    }
}

/// From an operation to the one where the thread leaves the function or waits, or to what is wrong; and how many these were.
fn go(code: &Code, mut at: usize, reach: &mut Reach, registers: &mut [u64]) -> (usize, Result<u64>) {
    for step in 1..MOST_STEPS {
        match code.operations.get(at) {
            Some(&Operation::One(f, [to, a])) => registers[to as usize] = f(registers[a as usize]),
            Some(&Operation::Two(f, [to, a, b])) => {
                registers[to as usize] = f(registers[a as usize], registers[b as usize]);
            }
            Some(&Operation::Three(f, [to, a, b, c])) => {
                registers[to as usize] = f(registers[a as usize], registers[b as usize], registers[c as usize]);
            }
            Some(&Operation::Branch(to)) => {
                at = to as usize;
                continue;
            }
            Some(&Operation::BranchIf { condition, wanted, to }) => {
                if (registers[condition as usize] & 1 == 1) == wanted {
                    at = to as usize;
                    continue;
                }
            }
            Some(
                Operation::Call(_) | Operation::Return | Operation::Barrier | Operation::Turn | Operation::Meet(_),
            ) => {
                return (at, Ok(step));
            }
            Some(Operation::Look { .. }) if !reach.own.may_look => return (at, Ok(step)),
            Some(operation) => {
                if let Err(said) = reach.work(operation, registers) {
                    return (at, Err(said));
                }
            }
            None => return (at, Err("the code ends here without going back".into())),
        }
        at += 1;
    }
    (at, Err("does not come to an end".into()))
}

fn nothing(address: u64, size: usize, array: Option<&[u8]>) -> String {
    let of = array.map_or(String::new(), |array| format!(" of {}", array.len()));
    format!("{size} bytes at {address:#x} are beyond an array{of}, or nothing that can be had so")
}

fn of_bytes(bytes: &[u8], signed: bool) -> u64 {
    match (bytes.len(), signed) {
        (4, false) => u32::from_le_bytes(bytes.try_into().unwrap()).into(),
        (4, true) => i32::from_le_bytes(bytes.try_into().unwrap()) as u64,
        (8, _) => u64::from_le_bytes(bytes.try_into().unwrap()),
        (1, true) => bytes[0] as i8 as u64,
        (1, false) => bytes[0].into(),
        (_, true) => i16::from_le_bytes(bytes.try_into().unwrap()) as u64,
        (_, false) => u16::from_le_bytes(bytes.try_into().unwrap()).into(),
    }
}

fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

impl Thread {
    fn begin(&mut self, launch: &Launch, block: u32, index: u32) {
        (self.state, self.block, self.index, self.own) = (State::Ready, block, index, Own::default());
        self.frames.clear();
        self.registers.clear();
        self.enter(launch, launch.kernel);
    }

    fn enter(&mut self, launch: &Launch, function: usize) {
        let code = &launch.module.functions[function];
        let [local, parameters] = [&self.own.local, &self.own.parameters].map(|bytes| bytes.len().next_multiple_of(32));
        let frame = Frame { function, at: 0, registers: self.registers.len(), local, parameters };
        self.registers.extend_from_slice(&code.registers);
        self.own.local.resize(local + code.local, 0xff);
        self.own.parameters.resize(parameters + code.parameters, 0xff);
        for &(special, register) in &code.specials {
            self.registers[frame.registers + register as usize] = match special {
                Special::Thread => self.index,
                Special::Threads => launch.threads,
                Special::Block => self.block,
                Special::Blocks => launch.grid,
                Special::OwnMask => 1 << (self.index % 32),
            }
            .into();
        }
        self.frames.push(frame);
    }

    pub fn frame(&self) -> Frame {
        *self.frames.last().unwrap()
    }

    fn copy_parameters(&mut self, from: (usize, &[Place]), to: (usize, &[Place])) -> Result<()> {
        let same = from.1.len() == to.1.len() && from.1.iter().zip(to.1).all(|(a, b)| a.bytes == b.bytes);
        for (a, b) in from.1.iter().zip(to.1) {
            let start = from.0 + a.offset;
            self.own.parameters.copy_within(start..start + a.bytes, to.0 + b.offset);
        }
        if same {
            Ok(())
        } else {
            Err("a call with other parameters than the function has".into())
        }
    }

    fn call(&mut self, launch: &Launch, call: &Call) -> Result<()> {
        let caller = self.frame();
        self.enter(launch, call.function);
        let places = &launch.module.functions[call.function].arguments;
        self.copy_parameters((caller.parameters, &call.arguments), (self.frame().parameters, places))
    }

    /// Behind the call that it came from; the kernel's own end is the thread's.
    fn go_back(&mut self, launch: &Launch) -> Result<()> {
        let [.., caller, frame] = self.frames[..] else {
            self.state = State::Done;
            return Ok(());
        };
        let functions = &launch.module.functions;
        let Operation::Call(call) = &functions[caller.function].operations[caller.at] else { unreachable!() };
        let places = &functions[frame.function].returns;
        self.copy_parameters((frame.parameters, places), (caller.parameters, &call.returns))?;
        self.registers.truncate(frame.registers);
        self.own.local.truncate(frame.local);
        self.own.parameters.truncate(frame.parameters);
        self.frames.pop();
        self.frames.last_mut().unwrap().at += 1;
        Ok(())
    }

    /// For messages: where its next operation stands.
    pub fn place(&self, module: &Module) -> String {
        let frame = self.frame();
        let code = &module.functions[frame.function];
        let line = code.lines.get(frame.at).or(code.lines.last()).unwrap();
        format!("thread {} of block {} at line {line} in {}", self.index, self.block, code.name)
    }

    /// Until it waits or ends.
    fn run(&mut self, world: &mut World, shared: &mut [u8]) -> Result<()> {
        self.own.may_look = self.state == State::Looking;
        self.state = State::Ready;
        while self.state == State::Ready {
            let ran = self.run_function(world, shared);
            ran.map_err(|said| format!("{}: {said}", self.place(world.launch.module)))?;
        }
        Ok(())
    }

    /// Until it waits, calls or goes back.
    fn run_function(&mut self, world: &mut World, shared: &mut [u8]) -> Result<()> {
        let (frame, launch) = (self.frame(), world.launch);
        let code = &launch.module.functions[frame.function];
        let (arrays, moved) = (&mut *world.arrays, &mut world.moved);
        let mut reach = Reach { launch, arrays, moved, shared, own: &mut self.own, frame };
        let (at, steps) = go(code, frame.at, &mut reach, &mut self.registers[frame.registers..]);
        self.frames.last_mut().unwrap().at = at;
        world.steps += steps?;
        self.state = match &code.operations[at] {
            Operation::Call(call) => return self.call(launch, call),
            Operation::Return => return self.go_back(launch),
            Operation::Barrier => State::AtBarrier,
            Operation::Meet(_) => State::AtMeeting,
            Operation::Turn => State::AtTurn,
            _ => State::Looking,
        };
        Ok(())
    }
}

/// Numbers in an order from a seed.
struct Order(u64);

impl Order {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }

    fn of(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        (1..n).for_each(|i| order.swap(i, self.below(i + 1)));
        order
    }
}

struct Block {
    threads: Vec<Thread>,
    shared: Vec<u8>,
}

impl Block {
    fn new(launch: &Launch) -> Block {
        Block { threads: (0..launch.threads).map(|_| Thread::default()).collect(), shared: Vec::new() }
    }

    fn begin(&mut self, launch: &Launch, index: u32) {
        self.shared.clear();
        self.shared.resize(launch.module.shared + launch.shared, 0xff);
        for (i, thread) in self.threads.iter_mut().enumerate() {
            thread.begin(launch, index, i as u32);
        }
    }

    /// Each warp as far as it can, and over a barrier where all have come to one; whether the block is done.
    fn take_turn(&mut self, world: &mut World, order: &mut Order) -> Result<bool> {
        world.moved |= self.threads.iter().any(|thread| thread.state == State::Ready);
        for thread in self.threads.iter_mut().filter(|thread| thread.state == State::Looking) {
            thread.run(world, &mut self.shared)?;
        }
        let lanes = order.of(WARP);
        for warp in order.of(self.threads.len().div_ceil(WARP)) {
            let warp = WARP * warp..self.threads.len().min(WARP * (warp + 1));
            loop {
                for i in lanes.iter().map(|lane| warp.start + lane).filter(|&i| i < warp.end) {
                    if self.threads[i].state == State::Ready {
                        self.threads[i].run(world, &mut self.shared)?;
                    }
                }
                let lanes = &mut self.threads[warp.clone()];
                if !meet(lanes, world.launch.module)? && !take_turns(lanes) {
                    break;
                }
            }
        }
        self.pass_barrier(world.launch.module)
    }

    /// Lets all threads go on where they wait at the same barrier; whether the block is done.
    fn pass_barrier(&mut self, module: &Module) -> Result<bool> {
        let any = |state| self.threads.iter().find(|thread| thread.state == state);
        if let Some(thread) = any(State::AtMeeting) {
            return match any(State::Looking) {
                Some(_) => Ok(false),
                None => Err(format!("{} waits for lanes that do not come (divergence)", thread.place(module))),
            };
        }
        let Some(waiting) = any(State::AtBarrier) else { return Ok(any(State::Looking).is_none()) };
        if any(State::Looking).is_some() {
            return Ok(false);
        }
        if let Some(done) = any(State::Done) {
            return Err(format!("thread {} ended while others wait: {}", done.index, waiting.place(module)));
        }
        let at = |thread: &Thread| (thread.frame().function, thread.frame().at);
        if let Some(other) = self.threads.iter().find(|other| at(other) != at(waiting)) {
            return Err(format!("{} waits at another barrier than {}", other.place(module), waiting.place(module)));
        }
        self.threads.iter_mut().for_each(Thread::go_on);
        Ok(false)
    }
}

/// Blocks that are there at once, by turns until all are done.
fn run_blocks(blocks: &mut [Block], world: &mut World, order: &mut Order) -> Result<()> {
    let mut left: Vec<usize> = (0..blocks.len()).collect();
    while !left.is_empty() {
        world.moved = false;
        let mut remaining = Vec::new();
        for i in order.of(left.len()) {
            if !blocks[left[i]].take_turn(world, order)? {
                remaining.push(left[i]);
            }
        }
        left = remaining;
        if let (Some(&first), false) = (left.first(), world.moved) {
            let threads = &blocks[first].threads;
            let thread = threads.iter().find(|thread| thread.state == State::Looking).unwrap_or(&threads[0]);
            return Err(format!("{}: blocks wait for each other in vain", thread.place(world.launch.module)));
        }
    }
    Ok(())
}

/// A kernel, from its begin to its end. What comes back is how many instructions that took.
pub fn run(launch: &Launch, arrays: &mut Arrays) -> Result<u64> {
    let code = &launch.module.functions[launch.kernel];
    if code.argument != launch.argument.len() {
        return Err(format!("{}: {} bytes for an argument of {}", code.name, launch.argument.len(), code.argument));
    }
    if code.most_threads.is_some_and(|most| launch.threads > most) {
        return Err(format!("{}: {} threads are too many", code.name, launch.threads));
    }
    let mut world = World { launch, arrays, moved: false, steps: 0 };
    let mut order = Order(launch.seed);
    let at_once = if launch.together { launch.grid } else { 1 };
    let mut blocks: Vec<Block> = (0..at_once).map(|_| Block::new(launch)).collect();
    for first in (0..launch.grid).step_by(at_once as usize) {
        for (block, index) in blocks.iter_mut().zip(first..) {
            block.begin(launch, index);
        }
        run_blocks(&mut blocks, &mut world, &mut order)?;
    }
    Ok(world.steps)
}
