//! Indirect branches: tables by the low 16 bits of the target, and a chain of stubs behind each entry.
//!
//! A branch leaves rcx in `saved_rcx` and jumps through its table. A stub compares its target with the word that a return
//! popped, or for jumps and calls with the state's `target`, and falls into the target's block; at the end of the chain is the
//! run loop. Flags are dead at returns; jumps may carry them, so that theirs compare with `lea` and `jrcxz`.

use crate::cache::Cache;
use crate::emit::{Code, Mem, NOTHING, RCX};
use crate::entry::labels;
use crate::layout;
use crate::recovery::{Mark, Rule};
use crate::state::slot;

/// rax, which the comparison with an address above 2 GB borrows.
const RAX: u8 = 0;
const RSP: u8 = 4;
/// `jne`.
const NOT_EQUAL: u8 = 5;

/// Which table a branch goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    /// Jumps and calls: the target is in the state's `target`.
    Jumps,
    /// Returns, where flags are dead: the target was popped, and lies below the stack pointer.
    Returns,
}

impl Table {
    const ALL: [Self; 2] = [Self::Jumps, Self::Returns];

    fn base(self) -> u64 {
        match self {
            Self::Jumps => layout::TABLES,
            Self::Returns => layout::RETURNS,
        }
    }

    /// The entry of a target.
    fn entry(self, pc: u64) -> *mut u64 {
        let index = pc as usize % layout::TABLE_ENTRIES;
        std::ptr::with_exposed_provenance_mut::<u64>(self.base() as usize).wrapping_add(index)
    }

    fn miss(self) -> u64 {
        match self {
            Self::Jumps => labels().miss,
            Self::Returns => labels().miss_return,
        }
    }

    /// How the guest is found in a stub.
    fn rule(self) -> Rule {
        match self {
            Self::Jumps => Rule::TO_TARGET,
            Self::Returns => Rule::POPPED,
        }
    }
}

/// Lets every entry lead to the run loop.
pub(crate) fn reset_table() {
    for table in Table::ALL {
        let miss = table.miss();
        for index in 0..layout::TABLE_ENTRIES {
            // SAFETY: `Engine::new` mapped the tables, and nothing else refers to them as Rust memory.
            unsafe { table.entry(index as u64).write(miss) };
        }
    }
}

/// Writes the jump through a table: rcx holds the target.
pub(crate) fn dispatch(code: &mut Code, table: Table) {
    // movzx ecx, cx; jmp [rcx*8 + table]
    code.raw(&[0x0f, 0xb7, 0xc9]);
    let entries = Mem { index: Some(RCX), scale: 3, ..Mem::at(table.base() as usize) };
    code.jump_through(&entries);
}

/// Adds a stub for `pc` in front of its chain. Its block is at `host`, or will be made next, right behind the stub.
pub(crate) fn add_stub(cache: &mut Cache, table: Table, pc: u64, host: Option<u64>) {
    if cache.has_stub(table, pc) {
        return;
    }
    // SAFETY: as in `reset_table`.
    let next = unsafe { table.entry(pc).read() };
    let mut code = Code::default();
    code.begin(cache.hot_next);
    let mut marks = vec![Mark { host: code.start as u32, pc, rule: table.rule() }];
    let elsewhere = if next == table.miss() { None } else { Some(next) };
    match table {
        Table::Returns => {
            let elsewhere = elsewhere.unwrap_or_else(|| put_miss(cache, pc));
            compare_popped(&mut code, pc, elsewhere);
        }
        Table::Jumps => compare_target(&mut code, &mut marks, pc, elsewhere),
    }
    code.load(RCX, &Mem::at(slot!(saved_rcx)));
    marks.push(Mark { host: code.here() as u32, pc, rule: Rule::EXACT });
    let site = match host {
        Some(host) => code.jump(host),
        None => {
            // The next block begins at a multiple of 16.
            while !(code.here() + NOTHING.len() as u64).is_multiple_of(16) {
                code.raw(&[0x90]);
            }
            code.raw(&NOTHING);
            code.here() - 4
        }
    };
    let start = code.start;
    cache.put_hot(&code, &marks);
    cache.keep_stub(table, pc, site);
    // SAFETY: as in `reset_table`.
    unsafe { table.entry(pc).write(start) };
}

/// Puts a return's way to the run loop into the cold code. It may be further away than a displacement reaches.
fn put_miss(cache: &mut Cache, pc: u64) -> u64 {
    let mut cold = Code::default();
    cold.begin(cache.cold_next);
    cold.jump_through(&Mem::at(slot!(miss_return_code)));
    cache.recovery.add_cold(Mark { host: cold.start as u32, pc, rule: Rule::POPPED });
    cache.put_cold(&cold);
    cold.start
}

/// Goes elsewhere unless `pc` was popped.
fn compare_popped(code: &mut Code, pc: u64, elsewhere: u64) {
    let popped = Mem::base(RSP, -8);
    match i32::try_from(pc) {
        Ok(short) => code.compare_i32(&popped, short),
        Err(_) => {
            code.set(RCX, pc);
            code.compare(RCX, &popped);
        }
    }
    code.jump_if(NOT_EQUAL, elsewhere);
}

/// Goes elsewhere, or to the miss, unless the target is `pc`; without a change of flags.
fn compare_target(code: &mut Code, marks: &mut Vec<Mark>, pc: u64, elsewhere: Option<u64>) {
    let target = Mem::at(slot!(target));
    if let Ok(short) = i32::try_from(pc) {
        code.load(RCX, &target);
        code.lea(RCX, &Mem::base(RCX, -short));
    } else {
        code.store(&Mem::at(slot!(saved_scratch)), RAX);
        marks.push(Mark { host: code.here() as u32, pc, rule: Rule::TO_TARGET.and_scratch(RAX) });
        code.set(RAX, pc.wrapping_neg());
        code.load(RCX, &target);
        code.lea(RCX, &Mem { index: Some(RAX), ..Mem::base(RCX, 0) });
        code.load(RAX, &Mem::at(slot!(saved_scratch)));
        marks.push(Mark { host: code.here() as u32, pc, rule: Rule::TO_TARGET });
    }
    let found = code.jump_if_rcx_zero();
    match elsewhere {
        Some(next) => {
            code.jump(next);
        }
        None => code.jump_through(&Mem::at(slot!(miss_code))),
    }
    code.land(found);
}
