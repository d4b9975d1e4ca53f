//! The table that turns an address in the cache into the guest's state at an instruction boundary.
//!
//! Each block has a list of marks: from this offset on, the guest is at this instruction (before it, and able to begin it
//! anew), and this is what must be put back. Code that changes nothing of the guest's needs no mark of its own, so most
//! instructions have one mark of two bytes: how far the guest's address and the host's went. The lists are written when a
//! block is made and read in signal handlers; a handler that finds a thread in the cache finds it not writing here.

/// What must be put back to have the guest's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule(u8);

/// Where the guest's address comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pc {
    /// The mark says.
    Marked,
    /// The state's `target`.
    Target,
    /// It is in the host's rcx.
    Rcx,
    /// It was popped: it is the word below the stack pointer.
    Popped,
}

impl Rule {
    /// The host's registers are the guest's.
    pub const EXACT: Self = Self(4);
    /// rcx is in `saved_rcx`.
    pub const RCX: Self = Self(4 | 0x10);
    /// rcx is in `saved_rcx`, and the guest goes to what the host's rcx holds.
    pub const TO_RCX: Self = Self(4 | 0x10 | 0x40);
    /// rcx is in `saved_rcx`, and the guest goes to `target`.
    pub const TO_TARGET: Self = Self(4 | 0x10 | 0x20);

    /// rcx is in `saved_rcx`, and the guest goes to what it has popped.
    pub const POPPED: Self = Self(4 | 0x10 | 0x60);

    /// The register is in `saved_scratch`.
    pub const fn scratch(register: u8) -> Self {
        Self(register)
    }

    /// The same, and a register in `saved_scratch`.
    pub const fn and_scratch(self, register: u8) -> Self {
        Self(self.0 & 0xf0 | register)
    }

    pub fn scratch_register(self) -> Option<u8> {
        (self.0 & 15 != 4).then_some(self.0 & 15)
    }

    pub fn restores_rcx(self) -> bool {
        self.0 & 0x10 != 0
    }

    pub fn pc(self) -> Pc {
        match self.0 >> 5 {
            0 => Pc::Marked,
            1 => Pc::Target,
            2 => Pc::Rcx,
            _ => Pc::Popped,
        }
    }
}

/// From `host` on, the guest is at `pc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub host: u32,
    pub pc: u64,
    pub rule: Rule,
}

/// A run of code with marks: a block, or a stub of an indirect branch.
#[derive(Debug, Clone, Copy)]
struct Piece {
    host: u32,
    end: u32,
    pc: u64,
    list: u32,
}

/// The tables of hot and cold code.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    pieces: Vec<Piece>,
    lists: Vec<u8>,
    cold: Vec<Mark>,
}

const PC_ESCAPE: u8 = 15;
const HAS_RULE: u8 = 0x10;

impl Recovery {
    /// Adds a piece of hot code that lies behind all that were added before. `marks` are in order; the first is at `host`.
    pub fn add(&mut self, host: u64, end: u64, marks: &[Mark]) {
        let Some(first) = marks.first() else { return };
        let list = self.lists.len() as u32;
        let (mut at, mut pc) = (host as u32, first.pc);
        for mark in marks {
            let advance = mark.pc.wrapping_sub(pc);
            let has_rule = if mark.rule == Rule::EXACT { 0 } else { HAS_RULE };
            let short = advance < u64::from(PC_ESCAPE);
            self.lists.push(if short { advance as u8 } else { PC_ESCAPE } | has_rule);
            if !short {
                self.lists.extend_from_slice(&mark.pc.to_le_bytes());
            }
            if has_rule != 0 {
                self.lists.push(mark.rule.0);
            }
            let distance = mark.host - at;
            if distance < 255 {
                self.lists.push(distance as u8);
            } else {
                self.lists.push(255);
                self.lists.extend_from_slice(&distance.to_le_bytes());
            }
            (at, pc) = (mark.host, mark.pc);
        }
        self.pieces.push(Piece { host: host as u32, end: end as u32, pc: first.pc, list });
    }

    /// Adds a mark of cold code, behind all that were added before.
    pub fn add_cold(&mut self, mark: Mark) {
        self.cold.push(mark);
    }

    pub fn clear(&mut self) {
        self.pieces.clear();
        self.lists.clear();
        self.cold.clear();
    }

    /// How many bytes the tables hold.
    pub fn bytes(&self) -> usize {
        self.pieces.len() * size_of::<Piece>() + self.lists.len() + self.cold.len() * size_of::<Mark>()
    }

    /// The mark that is in force at an address of the cache.
    pub fn find(&self, host_pc: u64) -> Option<Mark> {
        let host = u32::try_from(host_pc).ok()?;
        if host_pc >= crate::layout::COLD {
            let behind = self.cold.partition_point(|mark| mark.host <= host);
            return behind.checked_sub(1).map(|index| self.cold[index]);
        }
        let behind = self.pieces.partition_point(|piece| piece.host <= host);
        let index = behind.checked_sub(1)?;
        let piece = self.pieces[index];
        if host >= piece.end {
            return None;
        }
        let list_end = self.pieces.get(index + 1).map_or(self.lists.len(), |next| next.list as usize);
        let mut list = Reader { bytes: &self.lists[piece.list as usize..list_end] };
        let mut found = None;
        let (mut at, mut pc) = (piece.host, piece.pc);
        while let Some(header) = list.byte() {
            let advance = header & 15;
            pc = if advance == PC_ESCAPE { list.u64()? } else { pc + u64::from(advance) };
            let rule = if header & HAS_RULE != 0 { Rule(list.byte()?) } else { Rule::EXACT };
            let distance = match list.byte()? {
                255 => list.u32()?,
                short => u32::from(short),
            };
            at += distance;
            if at > host {
                break;
            }
            found = Some(Mark { host: at, pc, rule });
        }
        found
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(first)
    }

    fn u32(&mut self) -> Option<u32> {
        let (first, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(u32::from_le_bytes(*first))
    }

    fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(u64::from_le_bytes(*first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The encoded lists against the marks that they were made of, at every address.
    #[test]
    fn finds_what_was_added() {
        let base = 0x1000_0000u32;
        let mark = |host: u32, pc: u64, rule: Rule| Mark { host: base + host, pc, rule };
        let first = [
            mark(0, 0x40_0000, Rule::EXACT),
            mark(3, 0x40_0003, Rule::scratch(9)),
            mark(400, 0x40_0012, Rule::RCX),
            mark(401, 0x7fff_1234_5678, Rule::TO_TARGET),
            mark(405, 0x7fff_1234_5678, Rule::POPPED),
            mark(410, 0x7fff_1234_5670, Rule::EXACT),
        ];
        let second = [mark(500, 0x40_0100, Rule::TO_RCX), mark(520, 0x40_0101, Rule::EXACT)];
        let mut table = Recovery::default();
        table.add(u64::from(base), u64::from(base) + 450, &first);
        table.add(u64::from(base) + 500, u64::from(base) + 530, &second);
        for host in 0..540u32 {
            let expected = match host {
                0..450 => first.iter().rfind(|mark| mark.host - base <= host),
                450..500 | 530.. => None,
                _ => second.iter().rfind(|mark| mark.host - base <= host),
            };
            assert_eq!(table.find(u64::from(base + host)).as_ref(), expected, "at {host}");
        }
    }
}
