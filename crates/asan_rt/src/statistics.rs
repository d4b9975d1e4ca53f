//! Numbers at the end: `print_stats`, `atexit`, `print_module_map`, `print_cmdline`.

use crate::heap;
use crate::heap::{large, quarantine, regions};
use crate::output::Address;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::Ordering::Relaxed;

/// What the heap did so far.
pub fn print() {
    let [mallocs, malloc_bytes, frees, freed_bytes] = heap::totals();
    crate::out!(
        "Stats: {}M malloced (0M for red zones) by {mallocs} calls\nStats: 0M realloced by 0 calls\n\
         Stats: {}M freed by {frees} calls\nStats: 0M really freed by 0 calls\nStats: {}M mapped\n",
        malloc_bytes >> 20,
        freed_bytes >> 20,
        (regions::MAPPED_BYTES.load(Relaxed) + large::MAPPED_BYTES.load(Relaxed)) >> 20
    );
    crate::out!(
        "Stats: SizeClassAllocator64: {}M mapped\nStats: LargeMmapAllocator: {}M mapped\n\
         Quarantine limits: global: {}Mb; thread local: {}Kb\nGlobal quarantine stats: bytes: {}\n",
        regions::MAPPED_BYTES.load(Relaxed) >> 20,
        large::MAPPED_BYTES.load(Relaxed) >> 20,
        crate::options::options().quarantine_size_mb,
        crate::options::options().thread_local_quarantine_size_kb,
        quarantine::global_bytes()
    );
    print_classes();
}

fn print_classes() {
    regions::for_each_class(|facts| {
        crate::out!(
            "  {:02} ({:6}): mapped: {:6}K inuse: {:6} num_freed_chunks {:7} avail: {:6} releases: {:6} last released: \
             {:6}K region: {}\n",
            facts.class,
            facts.block_bytes,
            facts.mapped_bytes >> 10,
            facts.blocks.saturating_sub(facts.free_blocks),
            facts.free_blocks,
            facts.blocks,
            facts.releases,
            facts.last_released_bytes >> 10,
            Address(facts.start)
        );
    });
}

/// The program's arguments.
pub fn print_command_line() {
    let Some(words) = crate::sys::read_file(c"/proc/self/cmdline", 1 << 20) else { return };
    let mut text = String::from("\nCommand: ");
    for word in words.split(|&byte| byte == 0) {
        let _ = write!(text, "{} ", String::from_utf8_lossy(word));
    }
    crate::out!("{}\n\n", text.trim_end());
}

/// The objects in the process.
pub fn print_process_map() {
    crate::out!("Process memory map follows:\n");
    leakscope_rt::proc_maps::for_each(|line| {
        crate::out!(
            "\t{}-{}\t{}\n",
            Address(line.start as usize),
            Address(line.end as usize),
            String::from_utf8_lossy(line.name)
        );
    });
    crate::out!("End of process memory map.\n");
}

/// Live blocks by allocation stack, largest first: `top` percent of the bytes, at most `most` stacks.
pub fn print_profile(top: usize, most: usize) {
    let mut stacks: Vec<(u32, usize, usize)> = Vec::new();
    let (mut bytes, mut blocks, mut resting_bytes, mut resting) = (0, 0, 0, 0);
    heap::for_each(|found| {
        let size = found.facts.requested_bytes;
        if found.facts.state != heap::State::Allocated {
            resting += 1;
            resting_bytes += size;
            return;
        }
        bytes += size;
        blocks += 1;
        stacks.push((found.facts.stack, size, 1));
    });
    stacks.sort_unstable();
    let mut merged: Vec<(u32, usize, usize)> = Vec::new();
    for (stack, size, count) in stacks {
        match merged.last_mut().filter(|last| last.0 == stack) {
            Some(last) => {
                last.1 += size;
                last.2 += count;
            }
            None => merged.push((stack, size, count)),
        }
    }
    merged.sort_by_key(|&(_, size, _)| core::cmp::Reverse(size));
    crate::out!(
        "Live Heap Allocations: {bytes} bytes in {blocks} chunks; quarantined: {resting_bytes} bytes in {resting} \
         chunks; {} other chunks; total chunks: {}; showing top {top}% (at most {most} unique contexts)\n",
        0,
        blocks + resting
    );
    let mut shown = 0;
    for &(stack, size, count) in merged.iter().take(most) {
        crate::out!("{size} byte(s) ({}%) in {count} allocation(s)\n", size * 100 / bytes.max(1));
        crate::report::stack::print(&crate::depot::frames(stack));
        shown += size;
        if shown * 100 / bytes.max(1) > top {
            break;
        }
    }
}
