//! Logs of glibc's mtrace, at the speed at which they can be read.
//!
//! Source: glibc 2.36 `malloc/mtrace-impl.c` for the lines, `malloc/mtrace.pl` for what is to be said of them.
//!
//! ```text
//! = Start
//! @ ./prog:[0x11b1] + 0x55634e0854a0 0xa                   allocated; 0x11b1 counts from the first byte of ./prog
//! @ /lib/libc.so.6:(__strdup+1a)[0x9e9aa] + 0x5563 0x6     (function and its offset as far as symbols are there)
//! @ ./prog:[0x1216] < 0x55634e0854a0                       realloc: the old block
//! @ ./prog:[0x1216] > 0x55634e085500 0xfa0                 realloc: the new one
//! @ ./prog:[0x1216] ! 0x55634e085500 0xfa0                 realloc failed
//! @ ./prog:[0x1226] - 0x55634e0854c0                       released
//! ```
//!
//! A line is looked at from its first byte to its last once, nothing is allocated for it, and the live blocks are in
//! an open-addressing table without tombstones, so that memory follows the live blocks alone. Callers are kept once.

use std::hash::{BuildHasher, Hasher};
use std::io::{self, BufRead};

use leakscope_model::{AllocFn, MisuseKind, Tool};

use crate::sink::{Base, ErrorText, FrameText, Front, Map, Sink};

/// Number of a caller in its [`Callers`]; 0 is the empty text.
pub type CallerId = u32;

/// A block that is live at the end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Its address.
    pub address: u64,
    /// Its requested bytes.
    pub bytes: u64,
    /// Who allocated it.
    pub caller: CallerId,
}

/// Something that cannot be, as the script that comes with glibc words it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oddity {
    /// An allocation gave an address that is live.
    AllocDuplicate {
        /// The address.
        address: u64,
        /// Number of the line.
        line: u64,
        /// Who allocated it first.
        first: CallerId,
        /// Who did now.
        caller: CallerId,
    },
    /// `free` of an address that is not live.
    FreeUnknown {
        /// The address.
        address: u64,
        /// Number of the line.
        line: u64,
        /// Who called.
        caller: CallerId,
    },
    /// `realloc` of an address that is not live.
    ReallocUnknown {
        /// The address.
        address: u64,
        /// Number of the line.
        line: u64,
        /// Who called.
        caller: CallerId,
    },
    /// `realloc` gave an address that is live.
    ReallocDuplicate {
        /// The address.
        address: u64,
        /// Number of the line.
        line: u64,
        /// Bytes of the block that was there.
        bytes: u64,
        /// Who allocated that.
        first: CallerId,
        /// Who called now.
        caller: CallerId,
    },
}

/// Counts of a whole log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lines.
    pub lines: u64,
    /// Allocations, `realloc` included.
    pub allocations: u64,
    /// Bytes in them.
    pub allocated_bytes: u64,
    /// Releases, `realloc` included.
    pub releases: u64,
}

/// What a log amounts to.
pub struct Trace {
    /// The blocks that are live at the end, in no order.
    pub live: Vec<Live>,
    /// Who called.
    pub callers: Callers,
    /// Counts.
    pub counts: Counts,
    /// Lines that are none of mtrace's.
    pub unread: crate::Unread,
}

/// Texts of callers, each once.
pub struct Callers {
    numbers: hash::Table,
    texts: Vec<u8>,
    /// End of each text in `texts`.
    ends: Vec<usize>,
    state: foldhash::fast::RandomState,
    /// The caller that came last: programs allocate in loops.
    last: CallerId,
}

mod hash {
    /// Numbers by hash, linear probing; only what `Callers` needs.
    pub(super) struct Table {
        pub(super) slots: Vec<(u32, u32)>,
        pub(super) used: usize,
    }
}

impl Callers {
    fn new() -> Self {
        Self {
            numbers: hash::Table { slots: vec![(0, 0); 1024], used: 0 },
            texts: Vec::new(),
            ends: vec![0],
            state: foldhash::fast::RandomState::default(),
            last: 0,
        }
    }

    /// The text of a caller, such as `./prog:[0x11b1]`; empty for an unknown number.
    pub fn text(&self, caller: CallerId) -> String {
        String::from_utf8_lossy(self.bytes(caller)).into_owned()
    }

    /// How many there are, the empty one included.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    fn bytes(&self, caller: CallerId) -> &[u8] {
        let caller = caller as usize;
        match (caller.checked_sub(1).and_then(|before| self.ends.get(before)), self.ends.get(caller)) {
            (Some(&start), Some(&end)) => &self.texts[start..end],
            _ => &[],
        }
    }

    #[inline]
    fn number(&mut self, text: &[u8]) -> CallerId {
        if self.last != 0 && self.bytes(self.last) == text {
            return self.last;
        }
        self.last = self.find(text);
        self.last
    }

    fn find(&mut self, text: &[u8]) -> CallerId {
        if text.is_empty() {
            return 0;
        }
        let mut hasher = self.state.build_hasher();
        hasher.write(text);
        let hash = hasher.finish() as u32;
        let mask = self.numbers.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            match self.numbers.slots[at] {
                (_, 0) => break,
                (found, number) if found == hash && self.bytes(number) == text => return number,
                _ => at = (at + 1) & mask,
            }
        }
        let number = self.ends.len() as u32;
        self.texts.extend_from_slice(text);
        self.ends.push(self.texts.len());
        self.numbers.slots[at] = (hash, number);
        self.numbers.used += 1;
        if self.numbers.used * 2 > self.numbers.slots.len() {
            self.grow();
        }
        number
    }

    fn grow(&mut self) {
        let size = self.numbers.slots.len() * 2;
        let old = std::mem::replace(&mut self.numbers.slots, vec![(0, 0); size]);
        for (hash, number) in old.into_iter().filter(|&(_, number)| number != 0) {
            let mut at = hash as usize & (size - 1);
            while self.numbers.slots[at].1 != 0 {
                at = (at + 1) & (size - 1);
            }
            self.numbers.slots[at] = (hash, number);
        }
    }
}

/// Live blocks by address, in 16 bytes each: a log's blocks seldom lie in the cache, so what counts is how many lines
/// of it they take.
struct Blocks {
    slots: Vec<Slot>,
    used: usize,
    /// A hostile log must not be able to make all addresses meet in one slot.
    seed: u64,
    /// Blocks whose size and caller do not fit into a slot, by address.
    wide: Map<u64, Live>,
}

/// A block, or none when `packed` is [`EMPTY`].
#[derive(Clone, Copy)]
struct Slot {
    address: u64,
    /// The caller above [`SIZE_BITS`] bits of size, or [`WIDE`].
    packed: u64,
}

const SIZE_BITS: u32 = 40;
const EMPTY: u64 = u64::MAX;
const WIDE: u64 = u64::MAX - 1;

impl Blocks {
    fn new() -> Self {
        let seed = foldhash::fast::RandomState::default().hash_one(0x6c65_616b_u64);
        Self { slots: vec![Slot { address: 0, packed: EMPTY }; 1 << 12], used: 0, seed, wide: Map::default() }
    }

    /// Folded multiplication, which mixes every bit of the address into the slot.
    #[inline]
    fn home(&self, address: u64) -> usize {
        let product = u128::from(address ^ self.seed) * 0x9e37_79b9_7f4a_7c15;
        ((product >> 64) as u64 ^ product as u64) as usize & (self.slots.len() - 1)
    }

    /// The slot of an address, or the empty one where it belongs.
    #[inline]
    fn slot(&self, address: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = self.home(address);
        while self.slots[at].packed != EMPTY && self.slots[at].address != address {
            at = (at + 1) & mask;
        }
        at
    }

    fn unpack(&self, slot: Slot) -> Live {
        match slot.packed {
            WIDE => {
                self.wide.get(&slot.address).copied().unwrap_or(Live { address: slot.address, bytes: 0, caller: 0 })
            }
            packed => {
                let (bytes, caller) = (packed & ((1 << SIZE_BITS) - 1), (packed >> SIZE_BITS) as u32);
                Live { address: slot.address, bytes, caller }
            }
        }
    }

    /// Enters a block; gives the one that was there instead, if there was.
    #[inline]
    fn insert(&mut self, block: Live) -> Option<Live> {
        let at = self.slot(block.address);
        if self.slots[at].packed != EMPTY {
            return Some(self.unpack(self.slots[at]));
        }
        // The largest caller is left out, so that no block looks like one of the two marks.
        let fits = block.bytes >> SIZE_BITS == 0 && block.caller < (1 << (u64::BITS - SIZE_BITS)) - 1;
        let packed = if fits {
            u64::from(block.caller) << SIZE_BITS | block.bytes
        } else {
            self.wide.insert(block.address, block);
            WIDE
        };
        self.slots[at] = Slot { address: block.address, packed };
        self.used += 1;
        if self.used * 3 > self.slots.len() * 2 {
            self.resize(self.slots.len() * 2);
        }
        None
    }

    /// Takes a block out; whether it was there.
    #[inline]
    fn remove(&mut self, address: u64) -> bool {
        let mask = self.slots.len() - 1;
        let mut hole = self.slot(address);
        match self.slots[hole].packed {
            EMPTY => return false,
            WIDE => {
                self.wide.remove(&address);
            }
            _ => {}
        }
        // Those that were pushed past the hole move back, so that no mark has to stay in it.
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let next = self.slots[at];
            if next.packed == EMPTY {
                break;
            }
            let home = self.home(next.address);
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.slots[hole] = next;
                hole = at;
            }
        }
        self.slots[hole].packed = EMPTY;
        self.used -= 1;
        if self.used * 16 < self.slots.len() && self.slots.len() > 1 << 16 {
            self.resize(self.slots.len() / 4);
        }
        true
    }

    #[cold]
    fn resize(&mut self, size: usize) {
        let old = std::mem::replace(&mut self.slots, vec![Slot { address: 0, packed: EMPTY }; size]);
        for block in old.into_iter().filter(|block| block.packed != EMPTY) {
            let at = self.slot(block.address);
            self.slots[at] = block;
        }
    }

    fn live(&self) -> Vec<Live> {
        self.slots.iter().filter(|slot| slot.packed != EMPTY).map(|&slot| self.unpack(slot)).collect()
    }
}

/// Bytes that are read at once; a longer line is cut.
const CHUNK: usize = 1 << 20;

/// Reads a log to its end; `odd` hears of what cannot be, in the order of the log.
///
/// # Errors
/// Those of `input`.
pub fn read(input: &mut dyn BufRead, odd: &mut dyn FnMut(&Callers, Oddity)) -> io::Result<Trace> {
    let mut reader =
        Reader { blocks: Blocks::new(), callers: Callers::new(), counts: Counts::default(), unread: <_>::default() };
    // A line that the reader's buffer cuts in two.
    let mut carried: Vec<u8> = Vec::new();
    loop {
        let available = match input.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if available.is_empty() {
            break;
        }
        let length = available.len();
        let mut start = 0;
        if !carried.is_empty() {
            let end = memchr::memchr(b'\n', available);
            let taken = end.unwrap_or(length);
            let room = CHUNK.saturating_sub(carried.len());
            carried.extend_from_slice(&available[..taken.min(room)]);
            if end.is_none() {
                input.consume(length);
                continue;
            }
            carried.push(b'\n');
            reader.lines(&carried, odd);
            carried.clear();
            start = taken + 1;
        }
        let rest = reader.lines(&available[start..], odd);
        carried.extend_from_slice(&rest[..rest.len().min(CHUNK)]);
        input.consume(length);
    }
    if !carried.is_empty() {
        carried.push(b'\n');
        reader.lines(&carried, odd);
    }
    let Reader { blocks, callers, counts, unread } = reader;
    Ok(Trace { live: blocks.live(), callers, counts, unread })
}

struct Reader {
    blocks: Blocks,
    callers: Callers,
    counts: Counts,
    unread: crate::Unread,
}

/// Values of hex digits; what is none has a bit that no value has.
const DIGITS: [u8; 256] = {
    let mut table = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        table[b"0123456789abcdef"[value] as usize] = value as u8;
        table[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    table
};
const NO_DIGIT: u8 = 0x80;

/// A hex number behind `0x`; a zero may stand alone, as C's `%#lx` writes it. No digit is branched on: which ones they
/// are is chance, and a wrong guess costs more than the line.
#[inline]
fn number(text: &[u8]) -> Option<u64> {
    let Some(digits) = text.strip_prefix(b"0x") else { return (text == b"0").then_some(0) };
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    let mut value = 0_u64;
    let mut seen = 0;
    for &byte in digits {
        let digit = DIGITS[byte as usize];
        seen |= digit;
        value = value << 4 | u64::from(digit & 0xf);
    }
    (seen & NO_DIGIT == 0).then_some(value)
}

/// An event as its line tells it.
#[derive(Clone, Copy)]
struct Event<'a> {
    operation: u8,
    address: u64,
    bytes: u64,
    caller: &'a [u8],
    line: u64,
}

/// Events that are read before they are applied: their places in the table are fetched together.
const BATCH: usize = 32;

const NOTHING: Event<'static> = Event { operation: b'!', address: 0, bytes: 0, caller: &[], line: 0 };

impl Reader {
    /// Reads the whole lines of a piece of the log, and gives what is left of it.
    fn lines<'a>(&mut self, piece: &'a [u8], odd: &mut dyn FnMut(&Callers, Oddity)) -> &'a [u8] {
        let mut batch = [NOTHING; BATCH];
        let mut used = 0;
        let mut begin = 0;
        for end in memchr::memchr_iter(b'\n', piece) {
            if self.line(&piece[begin..end], &mut batch[used]).is_some() {
                used += 1;
                if used == BATCH {
                    self.apply(&batch, odd);
                    used = 0;
                }
            }
            begin = end + 1;
        }
        self.apply(&batch[..used], odd);
        &piece[begin..]
    }

    /// Reads a line without its end into `event`; `None` for one that is no event.
    #[inline]
    fn line<'a>(&mut self, line: &'a [u8], event: &mut Event<'a>) -> Option<()> {
        self.counts.lines += 1;
        let (caller, rest): (&[u8], &[u8]) = match line {
            [b'@', b' ', ..] => {
                // The caller ends with a bracket; a path may hold spaces and brackets as well.
                let Some(end) = line.iter().rposition(|&byte| byte == b']') else { return self.unread(line) };
                (&line[2..=end], &line[end + 1..])
            }
            [b'=', ..] | [] => return None,
            _ => (&[], line),
        };
        let rest = rest.trim_ascii_start();
        let [operation, b' ', numbers @ ..] = rest else { return self.unread(line) };
        let (address, bytes) = match operation {
            b'+' | b'>' | b'!' => {
                let Some(space) = numbers.iter().rposition(|&byte| byte == b' ') else { return self.unread(line) };
                (number(&numbers[..space]), number(&numbers[space + 1..]))
            }
            b'-' | b'<' => (number(numbers), Some(0)),
            _ => return self.unread(line),
        };
        let (Some(address), Some(bytes)) = (address, bytes) else { return self.unread(line) };
        *event = Event { operation: *operation, address, bytes, caller, line: self.counts.lines };
        Some(())
    }

    /// Applies events in their order.
    fn apply(&mut self, events: &[Event<'_>], odd: &mut dyn FnMut(&Callers, Oddity)) {
        // These reads do not wait for each other, so the places are in the cache when each is asked for in turn.
        let touched =
            events.iter().fold(0, |sum, event| sum ^ self.blocks.slots[self.blocks.home(event.address)].address);
        std::hint::black_box(touched);
        for event in events {
            self.event(event, odd);
        }
    }

    #[inline]
    fn event(&mut self, event: &Event<'_>, odd: &mut dyn FnMut(&Callers, Oddity)) {
        let Event { operation, address, bytes, line, .. } = *event;
        match operation {
            b'+' | b'>' => {
                let caller = self.callers.number(event.caller);
                self.counts.allocations += 1;
                self.counts.allocated_bytes = self.counts.allocated_bytes.saturating_add(bytes);
                if let Some(there) = self.blocks.insert(Live { address, bytes, caller }) {
                    let first = there.caller;
                    let oddity = match operation {
                        b'+' => Oddity::AllocDuplicate { address, line, first, caller },
                        _ => Oddity::ReallocDuplicate { address, line, bytes: there.bytes, first, caller },
                    };
                    odd(&self.callers, oddity);
                }
            }
            b'-' | b'<' => {
                self.counts.releases += 1;
                if !self.blocks.remove(address) {
                    let caller = self.callers.number(event.caller);
                    let oddity = match operation {
                        b'-' => Oddity::FreeUnknown { address, line, caller },
                        _ => Oddity::ReallocUnknown { address, line, caller },
                    };
                    odd(&self.callers, oddity);
                }
            }
            // A realloc that failed changes nothing.
            _ => {}
        }
    }

    #[cold]
    fn unread(&mut self, line: &[u8]) -> Option<()> {
        self.unread.lines += 1;
        if self.unread.first.is_none() {
            let text: String = String::from_utf8_lossy(&line[..line.len().min(400)]).chars().take(120).collect();
            let text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            self.unread.first = Some((self.counts.lines, text));
        }
        None
    }
}

/// A caller's text taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller<'a> {
    /// The file, empty when unknown.
    pub module: &'a str,
    /// The function, empty when unknown.
    pub function: &'a str,
    /// The address, which counts from the first byte of the module since glibc 2.34; an address of the running process
    /// before.
    pub address: u64,
}

/// Takes `./prog:(main+1a)[0x11b1]` apart; `None` when it is no caller.
pub fn caller(text: &str) -> Option<Caller<'_>> {
    let (front, address) = text.strip_suffix(']')?.rsplit_once('[')?;
    let address = crate::lines::hex(address)?;
    let (front, function) = match front.strip_suffix(')').and_then(|front| front.rsplit_once('(')) {
        Some((front, function)) => (front, function.rsplit_once(['+', '-']).map_or(function, |(name, _)| name)),
        None => (front, ""),
    };
    Some(Caller { module: front.strip_suffix(':').unwrap_or(front), function, address })
}

/// Lowest address that cannot count from the first byte of a file.
const RUN_TIME: u64 = 1 << 32;

/// Reads a log into a process.
pub(crate) fn import(input: &mut dyn BufRead, sink: &mut Sink) -> io::Result<()> {
    let number = sink.process(0, Tool::Mtrace);
    let mut wrong: Map<(CallerId, bool), (u64, u64)> = Map::default();
    let mut duplicates = 0_u64;
    let trace = read(input, &mut |_, oddity| match oddity {
        Oddity::FreeUnknown { address, caller, .. } => wrong.entry((caller, false)).or_insert((address, 0)).1 += 1,
        Oddity::ReallocUnknown { address, caller, .. } => wrong.entry((caller, true)).or_insert((address, 0)).1 += 1,
        Oddity::AllocDuplicate { .. } | Oddity::ReallocDuplicate { .. } => duplicates += 1,
    })?;
    let process = &mut sink.processes[number];
    let mut leaves: Map<CallerId, u32> = Map::default();
    let mut leaf_of = |process: &mut crate::sink::Process, id: CallerId| {
        *leaves.entry(id).or_insert_with(|| leaf(process, &trace.callers.text(id)))
    };
    let mut sums: Map<CallerId, (u64, u64)> = Map::default();
    for block in &trace.live {
        let sum = sums.entry(block.caller).or_default();
        *sum = (sum.0.saturating_add(block.bytes), sum.1 + 1);
    }
    let mut sums: Vec<(CallerId, (u64, u64))> = sums.into_iter().collect();
    sums.sort_unstable();
    for (id, (bytes, blocks)) in sums {
        let leaf = leaf_of(process, id);
        let site = process.site(leaf, Front::Caller);
        process.live(site, bytes, blocks);
    }
    let mut wrong: Vec<_> = wrong.into_iter().collect();
    wrong.sort_unstable();
    for ((id, is_realloc), (address, count)) in wrong {
        let (kind, function) = match is_realloc {
            true => (MisuseKind::InvalidRealloc, AllocFn::Realloc),
            false => (MisuseKind::InvalidFree, AllocFn::Free),
        };
        let text = ErrorText { leaf: leaf_of(process, id), address, count, ..ErrorText::default() };
        process.misuse(kind, Front::Absent(function), &text);
    }
    process.heap = Some((trace.counts.allocations, trace.counts.releases, trace.counts.allocated_bytes));
    if duplicates > 0 {
        process
            .out
            .problems
            .push(format!("{duplicates} allocations gave an address that was live: events are missing"));
    }
    sink.unread = trace.unread;
    Ok(())
}

/// The stack of a caller: one frame is all that there is.
fn leaf(process: &mut crate::sink::Process, text: &str) -> u32 {
    let Some(caller) = caller(text) else { return 0 };
    // The address follows the call.
    let pc = caller.address.wrapping_sub(1);
    let offset = (pc < RUN_TIME).then_some(pc);
    let module = process.module(caller.module, Base::FirstByte, pc, offset);
    // Symbols name no file and no line, so the address is looked up all the same if the file is at hand.
    let frame = process.frame(&FrameText { pc, module, offset, ..FrameText::default() });
    if process.out.process.executable.is_empty() && !caller.module.contains(".so") {
        caller.module.clone_into(&mut process.out.process.executable);
        process.out.process.command_line = vec![caller.module.to_owned()];
    }
    let leaf = process.stack(&[frame]);
    if !caller.function.is_empty() {
        process.fallback_name(leaf, caller.function);
    }
    leaf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_by_table() {
        for (text, module, function, address) in [
            ("./mt:[0x11b1]", "./mt", "", 0x11b1),
            ("/lib/libc.so.6:(__strdup+1a)[0x9e9aa]", "/lib/libc.so.6", "__strdup", 0x9e9aa),
            ("[0x11b1]", "", "", 0x11b1),
        ] {
            let read = caller(text).unwrap();
            assert_eq!((read.module, read.address), (module, address), "{text}");
            if !function.is_empty() {
                assert_eq!(read.function, function, "{text}");
            }
        }
        assert_eq!(caller("x"), None);
    }

    #[test]
    fn the_table_is_a_map() {
        use std::collections::HashMap;
        let mut blocks = Blocks::new();
        let mut model: HashMap<u64, Live> = HashMap::new();
        let mut state = 0x1234_5678_9abc_def0_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..300_000_u64 {
            // It grows, and later it shrinks again.
            let address = random() % 50_000 * 16;
            let grows = if round < 150_000 { random() % 4 != 0 } else { random() % 8 == 0 };
            if grows {
                let bytes = if random() % 64 == 0 { random() } else { random() % 4096 };
                let block = Live { address, bytes, caller: (random() >> 40) as u32 };
                let there = model.get(&address).copied();
                assert_eq!(blocks.insert(block), there);
                model.entry(address).or_insert(block);
            } else {
                assert_eq!(blocks.remove(address), model.remove(&address).is_some());
            }
        }
        let mut live = blocks.live();
        live.sort_by_key(|block| block.address);
        let mut expected: Vec<Live> = model.into_values().collect();
        expected.sort_by_key(|block| block.address);
        assert_eq!(live, expected);
    }

    #[test]
    fn numbers_by_table() {
        for (text, expected) in [
            ("0x1f", Some(31)),
            ("0xFFFFFFFFFFFFFFFF", Some(u64::MAX)),
            ("0x", None),
            ("0", Some(0)),
            ("1f", None),
            ("0x1g", None),
            ("0x10000000000000000", None),
        ] {
            assert_eq!(number(text.as_bytes()), expected, "{text}");
        }
    }
}
