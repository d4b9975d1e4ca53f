//! Indirect branches: a table by the low 16 bits of the target, and a chain of stubs behind each entry.
//!
//! A branch leaves rcx in `saved_rcx`, its target in `target`, and jumps through the table. A stub compares with `lea` and
//! `jrcxz`, which leave the flags alone, and goes to the block, or to the next stub of the chain, or to the run loop.

use crate::cache::Cache;
use crate::emit::{Code, Mem, RCX};
use crate::entry::labels;
use crate::layout;
use crate::recovery::{Mark, Rule};
use crate::state::slot;

/// rax, which the comparison with an address above 2 GB borrows.
const RAX: u8 = 0;

/// The table entry of a target.
fn entry(pc: u64) -> *mut u64 {
    let index = pc as usize % layout::TABLE_ENTRIES;
    std::ptr::with_exposed_provenance_mut::<u64>(layout::TABLES as usize).wrapping_add(index)
}

/// Lets every entry lead to the run loop.
pub(crate) fn reset_table() {
    let miss = labels().miss;
    for index in 0..layout::TABLE_ENTRIES {
        // SAFETY: `Engine::new` mapped the tables, and nothing else refers to them as Rust memory.
        unsafe { entry(index as u64).write(miss) };
    }
}

/// Writes the end of an indirect branch: rcx holds the target, `saved_rcx` the guest's rcx. The caller marks what comes
/// before.
pub(crate) fn dispatch(code: &mut Code, marks: &mut Vec<Mark>, pc: u64) {
    code.store(&Mem::at(slot!(target)), RCX);
    marks.push(Mark { host: code.here() as u32, pc, rule: Rule::TO_TARGET });
    // movzx ecx, cx; jmp [rcx*8 + table]
    code.raw(&[0x0f, 0xb7, 0xc9]);
    let table = Mem { index: Some(RCX), scale: 3, ..Mem::at(layout::TABLES as usize) };
    code.jump_through(&table);
}

/// Adds a stub for `pc`, whose block is at `host`, in front of its chain.
pub(crate) fn add_stub(cache: &mut Cache, pc: u64, host: u64) {
    if cache.has_stub(pc) {
        return;
    }
    // SAFETY: as in `reset_table`.
    let next = unsafe { entry(pc).read() };
    let mut code = Code::default();
    code.begin(cache.hot_next);
    let mut marks = vec![Mark { host: code.start as u32, pc, rule: Rule::TO_TARGET }];
    if let Ok(short) = i32::try_from(pc) {
        code.load(RCX, &Mem::at(slot!(target)));
        code.lea(RCX, &Mem::base(RCX, -short));
    } else {
        code.store(&Mem::at(slot!(saved_scratch)), RAX);
        marks.push(Mark { host: code.here() as u32, pc, rule: Rule::TO_TARGET.and_scratch(RAX) });
        code.set(RAX, pc.wrapping_neg());
        code.load(RCX, &Mem::at(slot!(target)));
        code.lea(RCX, &Mem { index: Some(RAX), ..Mem::base(RCX, 0) });
        code.load(RAX, &Mem::at(slot!(saved_scratch)));
        marks.push(Mark { host: code.here() as u32, pc, rule: Rule::TO_TARGET });
    }
    let found = code.jump_if_rcx_zero();
    if next == labels().miss {
        // May be further away than a displacement reaches, in a test's process.
        code.jump_through(&Mem::at(slot!(miss_code)));
    } else {
        code.jump(next);
    }
    code.land(found);
    code.load(RCX, &Mem::at(slot!(saved_rcx)));
    marks.push(Mark { host: code.here() as u32, pc, rule: Rule::EXACT });
    let site = code.jump(host);
    let start = code.start;
    cache.put_hot(&code, &marks);
    cache.keep_stub(pc, site);
    // SAFETY: as in `reset_table`.
    unsafe { entry(pc).write(start) };
}
