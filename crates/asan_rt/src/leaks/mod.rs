//! Leaks: blocks that nothing leads to, at the end of the process or when asked.
//!
//! Roots are the writable segments of objects, the live part of each thread's stack, thread-local storage, registers,
//! and what the program registered; marking is `leakscope_reach`'s. A pointer to any byte of a block keeps it, as in
//! LeakSanitizer. After a return from `main` only the frames above it are live: what `exit` and its handlers leave
//! or have not overwritten below are stale slots, which must not hide a leak.

mod roots;

use crate::heap::{self, State};
use crate::options::options;
use crate::output::Address;
use crate::report::stack::{self, symbolized};
use crate::{depot, modules, suppressions, sys};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};
use leakscope_model::{Avma, HeuristicSet, LeakKind};
use leakscope_reach::{Block, Granule, Region, Roots, Work, WorkSizes, mark};
use leakscope_rt::memory::{Lock, map_slice, unmap_slice};

static LOCK: Lock = Lock::new();
static WAS_CHECKED: AtomicBool = AtomicBool::new(false);

/// A live block.
#[derive(Clone, Copy)]
struct Live {
    start: usize,
    bytes: usize,
    stack: u32,
    is_root: bool,
}

/// Blocks of one kind and one stack.
struct Leak {
    is_direct: bool,
    stack: u32,
    bytes: usize,
    blocks: Vec<(usize, usize)>,
}

/// Whether an allocation came from the dynamic linker: it holds what threads and objects need for good.
fn is_of_linker(stack: u32, linker: Option<&modules::Module>, known: &mut Vec<(u32, bool)>) -> bool {
    let Some(linker) = linker else { return false };
    if let Some(&(_, answer)) = known.iter().find(|(number, _)| *number == stack) {
        return answer;
    }
    // The hook comes first, then its caller.
    let answer = depot::frames(stack).get(1).is_some_and(|&pc| linker.contains(pc as usize - 1));
    if known.len() > 4096 {
        known.clear();
    }
    known.push((stack, answer));
    answer
}

fn live_blocks() -> Vec<Live> {
    let all = modules::all();
    let linker = all.iter().find(|module| module.path.contains("/ld-linux") || module.path.contains("/ld-2."));
    let mut known = Vec::new();
    let mut blocks = Vec::new();
    heap::for_each(|found| {
        if found.facts.state == State::Allocated {
            let stack = found.facts.stack;
            let of_linker = options().use_ld_allocations && is_of_linker(stack, linker, &mut known);
            blocks.push(Live {
                start: found.user,
                bytes: found.facts.requested_bytes,
                stack,
                // What a coroutine allocated is often held by its stack alone, which may be memory that is no root.
                is_root: found.facts.ignored || found.facts.on_other_stack || of_linker,
            });
        }
    });
    blocks.sort_unstable_by_key(|block| block.start);
    blocks
}

/// A mapping that is ours for the time of a check.
struct Scratch<T: 'static>(&'static mut [T]);

impl<T> Scratch<T> {
    fn new(len: usize) -> Option<Self> {
        // SAFETY: only used with integers and structures of integers, for which all-zero bytes are valid.
        unsafe { map_slice(len, false) }.map(Self)
    }
}

impl<T> Drop for Scratch<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; nobody refers to it any more.
        unsafe { unmap_slice(core::mem::take(&mut self.0)) };
    }
}

/// Bytes through which a block is reached. `new T[0]` gives the address behind its count, one past the block's end.
fn span_of(block: &Live) -> usize {
    const COUNT_BYTES: usize = 8;
    let is_empty_array = block.bytes == COUNT_BYTES && sys::peek_word(block.start) == Some(0);
    if is_empty_array { COUNT_BYTES + 1 } else { block.bytes }
}

/// Marks, and gives every lost block with whether it is lost directly.
fn lost(blocks: &[Live], found: &roots::Found, may_change: bool) -> Option<Vec<(usize, bool)>> {
    let nodes: Vec<(usize, Block)> = blocks
        .iter()
        .enumerate()
        .filter(|(_, block)| !block.is_root)
        .map(|(at, block)| (at, Block { start: Avma(block.start as u64), size_bytes: span_of(block) as u64 }))
        .collect();
    let graph: Vec<Block> = nodes.iter().map(|(_, block)| *block).collect();
    let mut ranges = found.ranges.clone();
    for block in blocks.iter().filter(|block| block.is_root) {
        let end = block.start + block.bytes;
        ranges.push(Avma(block.start as u64)..Avma(end as u64));
    }
    ranges.sort_unstable_by_key(|range| range.start);
    let sizes = WorkSizes::for_blocks(graph.as_slice()).ok()?;
    let marks = Scratch::<AtomicU8>::new(sizes.marks)?;
    let leaders = Scratch::<AtomicU32>::new(sizes.leaders)?;
    let pending = Scratch::<AtomicU32>::new(sizes.stack.max(1))?;
    let regions = Scratch::<Region>::new(sizes.regions)?;
    let granules = Scratch::<Granule>::new(sizes.granules)?;
    let settled = Scratch::<AtomicU64>::new(sizes.settled)?;
    let work = Work {
        sizes,
        marks: &*marks.0,
        leaders: &*leaders.0,
        stack: &*pending.0,
        regions: &mut *regions.0,
        granules: &mut *granules.0,
        settled: &*settled.0,
    };
    let mut memory = roots::OwnMemory::new(&found.mappings, may_change);
    let roots = Roots { ranges: &ranges, registers: &found.registers };
    let marked = mark(graph.as_slice(), roots, HeuristicSet::NONE, &mut memory, work).ok()?;
    let mut lost = Vec::new();
    for (number, (at, _)) in nodes.iter().enumerate() {
        match marked.kind(number) {
            Some(LeakKind::DefinitelyLost) => lost.push((*at, true)),
            Some(LeakKind::IndirectlyLost) => lost.push((*at, false)),
            _ => {}
        }
    }
    Some(lost)
}

/// [`lost`], with pointers at any address when the options ask for them: what they lead to is reached, and marking begins
/// anew until they lead to nothing more.
fn lost_blocks(blocks: &[Live], found: &mut roots::Found, may_change: bool) -> Option<Vec<(usize, bool)>> {
    loop {
        let lost = lost(blocks, found, may_change)?;
        if !options().use_unaligned || lost.is_empty() {
            return Some(lost);
        }
        let is_lost = |at: usize| lost.binary_search_by_key(&at, |&(at, _)| at).is_ok();
        let held = blocks.iter().enumerate().filter(|&(at, _)| !is_lost(at));
        let held = held.map(|(_, block)| (block.start, block.start + block.bytes));
        let ranges = found.ranges.iter().map(|range| (range.start.0 as usize, range.end.0 as usize)).chain(held);
        let mut memory = roots::OwnMemory::new(&found.mappings, may_change);
        let mut reached = Vec::new();
        for (start, end) in ranges {
            memory.for_each_unaligned(start, end, &mut |word| {
                let after = blocks.partition_point(|block| block.start <= word);
                let target = after.checked_sub(1).filter(|&at| word < blocks[at].start + span_of(&blocks[at]));
                if target.is_some_and(is_lost) {
                    reached.push(word as u64);
                }
            });
        }
        if reached.is_empty() {
            return Some(lost);
        }
        found.registers.extend(reached);
    }
}

/// Looks for leaks, less what rules hide. `may_change`: a thread may wake up meanwhile.
fn find(scene: Scene, may_change: bool) -> Option<Vec<Leak>> {
    let Scene { roots: mut found, mut blocks } = scene;
    let mut judged: Vec<(u32, bool)> = Vec::new();
    loop {
        let lost = lost_blocks(&blocks, &mut found, may_change)?;
        let mut hides_more = false;
        for &(at, _) in &lost {
            let Some(block) = blocks.get_mut(at) else { continue };
            let hidden = match judged.iter().find(|(stack, _)| *stack == block.stack) {
                Some((_, hidden)) => *hidden,
                None => {
                    let rule = suppressions::leak_rule(&symbolized(&depot::frames(block.stack)));
                    judged.push((block.stack, rule.is_some()));
                    rule.is_some()
                }
            };
            if hidden {
                if let Some(rule) = suppressions::leak_rule(&symbolized(&depot::frames(block.stack))) {
                    rule.hits.fetch_add(1, AcqRel);
                    rule.hidden_bytes.fetch_add(block.bytes, AcqRel);
                }
                // What a hidden leak leads to is hidden with it.
                block.is_root = true;
                hides_more = true;
            }
        }
        if !hides_more {
            return Some(grouped(&blocks, &lost));
        }
    }
}

fn grouped(blocks: &[Live], lost: &[(usize, bool)]) -> Vec<Leak> {
    let mut sorted: Vec<(bool, u32, usize, usize)> = lost
        .iter()
        .filter_map(|&(at, is_direct)| blocks.get(at).map(|b| (is_direct, b.stack, b.start, b.bytes)))
        .collect();
    sorted.sort_unstable();
    let depth = usize::try_from(options().resolution).unwrap_or(0);
    let key_of = |stack: u32| {
        if depth == 0 {
            stack
        } else {
            depot::intern(depot::frames(stack).get(..depth + 1).unwrap_or(&depot::frames(stack)))
        }
    };
    let mut leaks: Vec<Leak> = Vec::new();
    for (is_direct, stack, start, bytes) in sorted {
        let stack = key_of(stack);
        match leaks
            .iter_mut()
            .rev()
            .take(if depth == 0 { 1 } else { usize::MAX })
            .find(|leak| leak.is_direct == is_direct && leak.stack == stack)
        {
            Some(leak) => {
                leak.bytes += bytes;
                leak.blocks.push((start, bytes));
            }
            None => leaks.push(Leak { is_direct, stack, bytes, blocks: alloc::vec![(start, bytes)] }),
        }
    }
    leaks.sort_by_key(|leak| (!leak.is_direct, core::cmp::Reverse(leak.bytes)));
    leaks
}

fn print(leaks: &[Leak]) {
    let mut out = String::new();
    let most = usize::try_from(options().max_leaks).unwrap_or(0);
    out.push_str("\n=================================================================\n");
    let _ = write!(out, "=={}==ERROR: LeakSanitizer: detected memory leaks\n\n", sys::getpid());
    if most > 0 && leaks.len() > most {
        let _ = writeln!(out, "The {most} top leak(s):");
    }
    let shown = if most > 0 { leaks.len().min(most) } else { leaks.len() };
    for leak in leaks.iter().take(shown) {
        let _ = writeln!(
            out,
            "{} leak of {} byte(s) in {} object(s) allocated from:",
            if leak.is_direct { "Direct" } else { "Indirect" },
            leak.bytes,
            leak.blocks.len()
        );
        out.push_str(&stack::text(&depot::frames(leak.stack)));
        if options().report_objects {
            out.push_str("Objects leaked above:\n");
            for (start, bytes) in &leak.blocks {
                let _ = writeln!(out, "{} ({bytes} bytes)", Address(*start));
            }
            out.push('\n');
        }
    }
    if shown < leaks.len() {
        let _ = writeln!(out, "Omitting {} more leak(s).", leaks.len() - shown);
    }
    crate::output::print(&out);
}

fn print_used_rules() {
    if !options().print_suppressions {
        return;
    }
    let mut used = suppressions::used_leak_rules().peekable();
    if used.peek().is_none() {
        return;
    }
    let line = "-----------------------------------------------------";
    let mut out = String::new();
    let _ = write!(out, "{line}\nSuppressions used:\n  count      bytes template\n");
    for rule in used {
        let (hits, bytes) = (rule.hits.load(Relaxed), rule.hidden_bytes.load(Relaxed));
        let _ = writeln!(out, "{hits:>7} {bytes:>10} {}", rule.pattern);
    }
    let _ = write!(out, "{line}\n\n");
    crate::output::print(&out);
}

/// What a check looks at, as it was in one moment.
struct Scene {
    roots: roots::Found,
    blocks: Vec<Live>,
}

/// Stops the other threads while none of them holds a lock that the check needs: the loader's, the heap's, our own; and
/// looks. The heap's locks are kept meanwhile: a thread that waits for one of them must not be served before we have seen
/// what there is.
fn look(is_exit: bool) -> Option<Scene> {
    struct Asked {
        is_exit: bool,
        seen: Option<Scene>,
    }
    unsafe extern "C" fn with_loader_lock(_: *mut libc::dl_phdr_info, _: usize, out: *mut core::ffi::c_void) -> i32 {
        // SAFETY: the caller's structure, which nobody else has.
        let asked = unsafe { &mut *out.cast::<Asked>() };
        heap::lock_all();
        depot::with_lock(|| {
            crate::arena::with_arena_locked(|| {
                leakscope_rt::stop::stop_others(!asked.is_exit);
            });
        });
        asked.seen = Some(Scene { roots: roots::find(asked.is_exit), blocks: live_blocks() });
        heap::unlock_all();
        1
    }
    let mut asked = Asked { is_exit, seen: None };
    // SAFETY: the callback gets the structure back, and ends the iteration at once.
    unsafe { libc::dl_iterate_phdr(Some(with_loader_lock), (&raw mut asked).cast()) };
    asked.seen
}

/// A check that would miss roots names leaks that are none; one under a tracer depends on what that does with the signals
/// which stop threads. LLVM's gives up in both cases, in these words.
#[cold]
fn give_up() -> ! {
    crate::out_pid!("LeakSanitizer has encountered a fatal error.\n");
    crate::out_pid!("HINT: For debugging, try setting environment variable LSAN_OPTIONS=verbosity=1:log_threads=1\n");
    crate::out_pid!("HINT: LeakSanitizer does not work under ptrace (strace, gdb, etc)\n");
    if sys::tracer().is_some() {
        crate::out!("    (this one often does: LSAN_OPTIONS=leak_check_under_tracer=1)\n");
    }
    crate::report::die()
}

/// Checks now; whether there are leaks.
fn check(is_exit: bool) -> bool {
    let _held = LOCK.lock();
    if options().verbosity > 0 {
        crate::out_pid!("LeakSanitizer: checking for leaks\n");
    }
    if let Some(tracer) = sys::tracer().filter(|_| !options().leak_check_under_tracer) {
        if options().verbosity > 0 {
            crate::out_pid!("LeakSanitizer: process {tracer} traces this one\n");
        }
        give_up();
    }
    let scene = look(is_exit);
    if let Some(address) = scene.as_ref().and_then(|scene| scene.roots.unreadable) {
        leakscope_rt::stop::resume();
        crate::out_pid!("Tracer caught signal 11: addr={}: globals that cannot be read\n", Address(address));
        give_up();
    }
    let leaks = scene.and_then(|scene| find(scene, !is_exit));
    leakscope_rt::stop::resume();
    let Some(leaks) = leaks else {
        crate::out_pid!("LeakSanitizer: not enough memory for the leak check\n");
        return false;
    };
    if !leaks.is_empty() {
        print(&leaks);
    }
    print_used_rules();
    if leaks.is_empty() {
        return false;
    }
    let bytes: usize = leaks.iter().map(|leak| leak.bytes).sum();
    let blocks: usize = leaks.iter().map(|leak| leak.blocks.len()).sum();
    stack::summary_line(&alloc::format!("{bytes} byte(s) leaked in {blocks} allocation(s)."));
    true
}

/// The program's `__lsan_is_turned_off`, asked at each check; 0 when it has none. Set by the exporting library.
pub static IS_TURNED_OFF: AtomicUsize = AtomicUsize::new(0);

fn is_wanted() -> bool {
    let function = IS_TURNED_OFF.load(Relaxed);
    let is_off = function != 0 && {
        // SAFETY: the interface says that it has this type.
        let function: extern "C" fn() -> i32 = unsafe { core::mem::transmute(function) };
        function() != 0
    };
    options().detect_leaks && !is_off
}

/// The check that ends with the process: `__lsan_do_leak_check`, and the end.
pub fn check_and_end() {
    if !is_wanted() || WAS_CHECKED.swap(true, AcqRel) {
        return;
    }
    if check(true) && options().exitcode != 0 {
        crate::report::die();
    }
}

/// At the end of the process, unless the options say otherwise.
pub fn check_at_exit() {
    if !options().leak_check_at_exit {
        return;
    }
    if options().halt_on_error {
        check_and_end();
    } else if !WAS_CHECKED.swap(true, AcqRel) {
        check_recoverably();
    }
}

/// A check after which the program goes on: 1 when there are leaks.
pub fn check_recoverably() -> i32 {
    i32::from(is_wanted() && check(false))
}

pub use roots::{register_region, unregister_region};
