//! The leak check: threads stand still, a forked copy of the process is examined, the ledger gets the result.
//!
//! The copy has the heap, the block table and all stacks frozen, so the program itself pauses only for stopping its
//! threads and for the fork. It also takes the risks: libc's and libstdc++'s clean-up runs in it, and a crash there
//! costs a retry, never the program. Where no process can be made, the check runs in place.

use crate::blocks;
use crate::memory::map_slice;
use crate::raw::{self, call, nr};
use crate::registers::RegisterFile;
use crate::roots::{self, HeapFinder, OwnMemory, Ranges};
use crate::runtime::{self, MODULES, flag};
use crate::stop;
use crate::thread::for_each_state;
use crate::waiting;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use leakscope_ledger::layout::{AreaId, CHECKS, CheckHeader, NO_HEURISTIC, check_state, flags};
use leakscope_ledger::writer::Ledger;
use leakscope_model::{CheckTrigger, Heuristic, HeuristicSet, LeakKind, SiteId};
use leakscope_reach::{Block, Blocks, LossRecord, Marked, Roots, Work, WorkSizes};

mod populate;
mod threads;
use populate::Populator;
use threads::Threads;

/// What the hooks know and the check needs.
#[derive(Clone, Copy)]
pub struct Surroundings {
    /// Addresses inside modules that belong to the allocator (libc's `malloc`, the one in use).
    pub allocator_code: [u64; 2],
    /// An address inside our own module.
    pub own_code: u64,
    /// libc's and libstdc++'s functions that release what they keep for themselves.
    pub freeres: [Option<unsafe extern "C" fn()>; 2],
}

/// Longest that libc's clean-up may take before the check goes on without it.
const FREERES_PATIENCE_NS: u64 = 2_000_000_000;

static RUNNING: AtomicU32 = AtomicU32::new(0);
static LAST_CHILD: AtomicU32 = AtomicU32::new(0);

/// Checks the calling process. `registers` are the calling thread's, from where its live stack begins. The busy mark
/// must be set. Waits for the result unless the program goes on.
pub fn run(ledger: &Ledger, trigger: CheckTrigger, status: i32, registers: &RegisterFile, surroundings: &Surroundings) {
    if RUNNING.swap(1, AcqRel) != 0 {
        return;
    }
    reap();
    if trigger == CheckTrigger::OnDemand && LAST_CHILD.load(Relaxed) != 0 {
        // The copy of the present request is still at work.
        RUNNING.store(0, Release);
        return;
    }
    let began = raw::clock_ns(1);
    let goes_on = matches!(trigger, CheckTrigger::OnDemand | CheckTrigger::Exec);
    let wants_freeres = flag(flags::RUN_FREERES) && matches!(trigger, CheckTrigger::Exit | CheckTrigger::QuickExit);
    runtime::refresh_modules(ledger);
    crate::deferred::settle(ledger);
    let Some(header) = new_header(ledger, trigger, status) else { return };
    let stopped = stop::stop_others(goes_on);
    header.threads_seen.store(stopped.seen + 1, Relaxed);
    header.threads_unseen.store(stopped.unseen, Relaxed);
    if trigger != CheckTrigger::OnDemand {
        waiting::end_waiting(!goes_on);
    }
    let job = Job { ledger, header, registers, surroundings, began };
    if trigger == CheckTrigger::OnDemand {
        on_the_side(&job);
    } else {
        let done = (wants_freeres && in_copy(&job, true)) || in_copy(&job, false);
        if !done && header.state.load(Acquire) != check_state::COMPLETE {
            job.examine(false, false);
        }
        if goes_on {
            stop::resume();
        }
    }
    header.pause_ns.store(raw::clock_ns(1).saturating_sub(began), Relaxed);
    RUNNING.store(0, Release);
}

/// In a forked child: no check runs here, whatever another thread of the parent was doing.
pub fn after_fork_in_child() {
    RUNNING.store(0, Release);
    LAST_CHILD.store(0, Release);
}

/// Takes back the process of an earlier check, if it has ended.
pub fn reap() {
    const WNOHANG_WALL: usize = 1 | 0x4000_0000;
    let child = LAST_CHILD.load(Relaxed);
    if child != 0 {
        // SAFETY: no status is asked for.
        if unsafe { call!(nr::WAIT4, child, 0, WNOHANG_WALL, 0) } != Ok(0) {
            LAST_CHILD.store(0, Relaxed);
        }
    }
}

fn new_header(ledger: &Ledger, trigger: CheckTrigger, status: i32) -> Option<&'static CheckHeader> {
    let number = ledger.header().used[AreaId::Checks as usize].load(Acquire);
    let header = ledger.check(number % CHECKS)?;
    header.trigger.store(trigger as u32, Relaxed);
    header.status.store(status as u32, Relaxed);
    header.monotonic_ns.store(raw::clock_ns(1), Relaxed);
    header.records.store(0, Relaxed);
    header.lost_records.store(0, Relaxed);
    header.failure.store(0, Relaxed);
    header.freeres.store(0, Relaxed);
    let half = ledger.capacity(AreaId::CheckRecords) / 2;
    header.first_record.store((number % 2) * half, Relaxed);
    header.state.store(check_state::RUNNING, Release);
    ledger.header().used[AreaId::Checks as usize].store(number + 1, Release);
    Some(header)
}

/// Forks without libc: no handlers of the program run, no lock is taken. 0 in the copy. The parent gets no signal when
/// the copy ends, and the program's own `wait` does not see it.
fn fork_quietly() -> Option<u32> {
    // SAFETY: clone without CLONE_VM copies the address space and goes on, in both processes, on the same stack.
    unsafe { call!(nr::CLONE, 0, 0, 0, 0, 0) }.ok().map(|pid| pid as u32)
}

/// Runs `body` in a copy of the process, which has only the descriptor `keep`, and waits for it a little.
pub(crate) fn in_harmless_copy(keep: Option<i32>, body: impl FnOnce()) {
    const WALL: usize = 0x4000_0000;
    const WNOHANG: usize = 1;
    match fork_quietly() {
        Some(0) => {
            become_harmless(keep);
            body();
            raw::exit_group(0)
        }
        Some(child) => {
            let deadline = raw::clock_ns(1) + FREERES_PATIENCE_NS;
            // SAFETY: no status is asked for.
            while matches!(unsafe { call!(nr::WAIT4, child, 0, WALL | WNOHANG, 0) }, Ok(0) | Err(raw::Errno(4))) {
                if raw::clock_ns(1) > deadline {
                    // SAFETY: kills our own copy; no status is asked for.
                    unsafe {
                        let _ = call!(nr::KILL, child, 9);
                        let _ = call!(nr::WAIT4, child, 0, WALL, 0);
                    }
                    return;
                }
                raw::sleep_ns(50_000);
            }
        }
        None => {}
    }
}

/// Makes the copy harmless: no signal handlers of the program, no descriptors but one, no core file.
fn become_harmless(keep: Option<i32>) {
    const CLOSE_RANGE: usize = 436;
    const PR_SET_DUMPABLE: usize = 4;
    const PR_SET_NAME: usize = 15;
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: a zeroed kernel sigaction is SIG_DFL.
        let _ = unsafe { call!(nr::RT_SIGACTION, signal, default.as_ptr(), 0, 8) };
    }
    // SAFETY: descriptors of the copy only; the program's are its own.
    unsafe {
        let keep = keep.map(|fd| fd as u32);
        let below = keep.is_some_and(|fd| fd > 0 && call!(CLOSE_RANGE, 0, fd - 1, 0).is_err());
        if below || call!(CLOSE_RANGE, keep.map_or(0, |fd| fd + 1), u32::MAX, 0).is_err() {
            for fd in (0..4096).filter(|&fd| keep != Some(fd as u32)) {
                raw::close(fd);
            }
        }
        let _ = call!(nr::PRCTL, PR_SET_DUMPABLE, 0);
        let _ = call!(nr::PRCTL, PR_SET_NAME, c"leakscope-check".as_ptr());
    }
}

struct Job<'a> {
    ledger: &'a Ledger,
    header: &'static CheckHeader,
    registers: &'a RegisterFile,
    surroundings: &'a Surroundings,
    began: u64,
}

/// Examines a copy and waits for it. True when the check is complete.
fn in_copy(job: &Job<'_>, freeres: bool) -> bool {
    const WALL: usize = 0x4000_0000;
    const WNOHANG: usize = 1;
    match fork_quietly() {
        Some(0) => {
            become_harmless(None);
            if freeres {
                release_library_memory(job);
            }
            job.examine(freeres, true);
            raw::exit_group(0)
        }
        Some(child) => {
            let deadline = raw::clock_ns(1) + FREERES_PATIENCE_NS;
            loop {
                let watched = freeres && job.header.freeres.load(Acquire) == 0;
                let options = if watched { WALL | WNOHANG } else { WALL };
                // SAFETY: no status is asked for.
                match unsafe { call!(nr::WAIT4, child, 0, options, 0) } {
                    Ok(0) if raw::clock_ns(1) > deadline => {
                        // SAFETY: kills our own copy.
                        let _ = unsafe { call!(nr::KILL, child, 9) };
                        // SAFETY: no status is asked for.
                        let _ = unsafe { call!(nr::WAIT4, child, 0, WALL, 0) };
                        break;
                    }
                    Ok(0) => raw::sleep_ns(50_000),
                    Err(raw::Errno(4)) => {}
                    _ => break,
                }
            }
            job.header.state.load(Acquire) == check_state::COMPLETE
        }
        None => false,
    }
}

/// Examines a copy while the program goes on.
fn on_the_side(job: &Job<'_>) {
    let wanted = job.ledger.header().snapshot_wanted.load(Acquire);
    match fork_quietly() {
        Some(0) => {
            become_harmless(None);
            job.examine(false, true);
            job.ledger.header().snapshot_done.store(wanted, Release);
            raw::exit_group(0)
        }
        Some(child) => {
            stop::resume();
            LAST_CHILD.store(child, Relaxed);
        }
        None => {
            job.examine(false, false);
            stop::resume();
            job.ledger.header().snapshot_done.store(wanted, Release);
        }
    }
}

fn release_library_memory(job: &Job<'_>) {
    // libc flushes its files first: into closed descriptors, so nothing is written twice.
    // The busy mark is lifted: these functions free blocks, and those frees are to be recorded.
    let words = crate::thread::tls();
    // SAFETY: the calling thread's own words; the functions take no arguments.
    unsafe {
        (*words).busy = 0;
        for function in job.surroundings.freeres.into_iter().rev().flatten() {
            function();
        }
        (*words).busy = 1;
    }
    job.header.freeres.store(1, Release);
}

/// The live blocks in a word each: a bit more than half of it is the start, the rest the size. What is not touched
/// does not have to be found, so that a check of a big heap needs little memory.
#[derive(Clone, Copy)]
struct HeapBlocks(&'static [u64]);

const SIZE_BITS: u32 = 21;
/// Stands for this and all larger sizes; the table of blocks knows them.
const SIZE_ELSEWHERE: u64 = (1 << SIZE_BITS) - 1;

impl HeapBlocks {
    /// `start` is a multiple of 16 below 2^47, as everything in the table is.
    fn pack(start: u64, bytes: u64) -> u64 {
        start >> 4 << SIZE_BITS | bytes.min(SIZE_ELSEWHERE)
    }

    fn site(self, number: usize) -> u32 {
        self.get(number).and_then(|block| blocks::lookup(block.start.0)).map_or(0, |info| info.site)
    }
}

impl Blocks for HeapBlocks {
    #[inline]
    fn len(self) -> usize {
        self.0.len()
    }

    #[inline]
    fn get(self, number: usize) -> Option<Block> {
        let word = *self.0.get(number)?;
        let (start, mut size_bytes) = (word >> SIZE_BITS << 4, word & SIZE_ELSEWHERE);
        if size_bytes == SIZE_ELSEWHERE {
            size_bytes = blocks::lookup(start).map_or(size_bytes, |info| info.bytes);
        }
        Some(Block { start: leakscope_model::Avma(start), size_bytes })
    }
}

/// The live blocks, and what the allocator owns.
struct Heap {
    blocks: HeapBlocks,
    excluded: Ranges,
    bytes: u64,
}

/// Most blocks that there is address space reserved for at once; less where the limits are tight.
const MOST_BLOCKS: [usize; 4] = [1 << 30, 1 << 26, 1 << 22, 1 << 18];

fn read_heap(ledger: &Ledger, populator: &Populator, expected: usize) -> Option<Heap> {
    // SAFETY: integers; zero bytes are valid.
    let all_blocks = MOST_BLOCKS.iter().find_map(|&most| unsafe { map_slice::<u64>(most, true) })?;
    populator.bring(all_blocks.get(..expected).unwrap_or_default());
    let mut pending = [0u64; 64];
    let mut pending_len = 0;
    for_each_state(|state| {
        let start = state.pending_start.load(Relaxed);
        if start != 0
            && let Some(slot) = pending.get_mut(pending_len)
        {
            *slot = start;
            pending_len += 1;
        }
    });
    let pending = pending.get(..pending_len).unwrap_or(&[]);
    let mut excluded = Ranges::new()?;
    let some_wait = waiting::is_any_waiting();
    let mut finder = HeapFinder::new(runtime::has_glibc_chunks());
    let (mut len, mut bytes, mut last_end) = (0usize, 0u64, 0u64);
    blocks::for_each(|info| {
        let waits = some_wait && waiting::is_waiting(info.start);
        let live = !info.freed && !waits || pending.contains(&info.start);
        finder.block(info.start, info.bytes, !live, &mut excluded);
        if live && info.site == runtime::OUR_SITE {
            return;
        }
        if live
            && info.start >= last_end
            && let Some(block) = all_blocks.get_mut(len)
        {
            *block = HeapBlocks::pack(info.start, info.bytes);
            len += 1;
            bytes += info.bytes;
            last_end = info.start + info.bytes.max(1);
        } else if live {
            ledger.header().lost.blocks.fetch_add(1, Relaxed);
        }
    });
    Some(Heap { blocks: HeapBlocks(all_blocks.get(..len)?), excluded, bytes })
}

impl Job<'_> {
    /// Classifies every block and writes the result; `is_copy`: in a copy of the process.
    fn examine(&self, freeres: bool, is_copy: bool) {
        if self.try_examine(is_copy).is_none() {
            let reason = self.ledger.store_string(b"not enough memory for the leak check");
            self.header.failure.store(reason, Relaxed);
            self.header.state.store(check_state::FAILED, Release);
            return;
        }
        self.header.freeres.store(u32::from(freeres), Relaxed);
        self.header.check_ns.store(raw::clock_ns(1).saturating_sub(self.began), Relaxed);
        self.header.state.store(check_state::COMPLETE, Release);
    }

    fn try_examine(&self, is_copy: bool) -> Option<()> {
        let expected = blocks::estimate_live();
        let populator = Populator::new(expected, is_copy);
        let Heap { blocks, mut excluded, bytes } = read_heap(self.ledger, &populator, expected)?;
        self.header.blocks.store(blocks.len() as u64, Relaxed);
        self.header.bytes.store(bytes, Relaxed);
        // SAFETY: integers; zero bytes are valid.
        let words = unsafe { map_slice::<u64>(1 << 22, false) }?;
        let mut words_len = 0;
        let mut push = |word: u64| {
            if let Some(slot) = words.get_mut(words_len) {
                *slot = word;
                words_len += 1;
            }
        };
        // SAFETY: as above.
        let stack_pointers = unsafe { map_slice::<u64>(1 << 13, false) }?;
        let mut stacks = 0;
        let mut add_thread = |registers: &RegisterFile| {
            registers.words.iter().for_each(|&word| push(word));
            if let Some(slot) = stack_pointers.get_mut(stacks) {
                *slot = registers.rsp;
                stacks += 1;
            }
        };
        add_thread(self.registers);
        stop::for_each_stopped(&mut add_thread);
        let Surroundings { allocator_code, own_code, .. } = *self.surroundings;
        let survey = {
            let modules = MODULES.read(self.ledger);
            let stack_pointers = stack_pointers.get(..stacks)?;
            let use_stacks = flag(flags::STACKS_ARE_ROOTS);
            roots::survey(&mut excluded, &modules, &allocator_code, own_code, stack_pointers, use_stacks)?
        };
        let mut memory = OwnMemory::new(&survey)?;
        for range in survey.exact.all() {
            let mut at = leakscope_model::Avma(range.start.0.next_multiple_of(8));
            while at.0 < range.end.0 {
                use leakscope_reach::Memory;
                let Some(part) = memory.words(at, ((range.end.0 - at.0) / 8) as usize) else { break };
                for &word in part {
                    if word & 15 == 0 && blocks::lookup(word).is_some_and(|block| !block.freed) {
                        push(word);
                    }
                }
                at.0 += part.len() as u64 * 8;
            }
        }
        let sizes = WorkSizes::for_blocks(blocks).ok()?;
        // SAFETY: integers, and `Region` and `Granule` whose zero bytes are documented as valid.
        let work = unsafe {
            Work {
                sizes,
                marks: map_slice(sizes.marks, true)?,
                leaders: map_slice(sizes.leaders, true)?,
                stack: map_slice(sizes.stack.max(1), true)?,
                regions: map_slice(sizes.regions, false)?,
                granules: map_slice(sizes.granules, true)?,
                settled: map_slice(sizes.settled, true)?,
            }
        };
        populator.bring(work.granules);
        populator.bring(work.settled);
        populator.bring(work.marks);
        let heuristics = HeuristicSet::from_bits(self.ledger.config().heuristics);
        let roots = Roots { ranges: survey.roots.all(), registers: words.get(..words_len)? };
        let crew = Threads::new(memory, &survey, blocks.len(), is_copy);
        let marked = leakscope_reach::mark_together(blocks, roots, heuristics, &crew, work).ok()?;
        let stats = marked.stats();
        self.header.root_bytes.store(stats.root_bytes, Relaxed);
        self.header.unreadable_bytes.store(stats.unreadable_root_bytes + stats.unreadable_block_bytes, Relaxed);
        self.write_records(&marked)
    }

    fn write_records(&self, marked: &Marked<'_, HeapBlocks>) -> Option<()> {
        let site_of = |block: usize| SiteId(marked.blocks().site(block));
        let most_sites = self.ledger.used(AreaId::Sites) as usize;
        let most = (most_sites * 4).min(marked.blocks().len() * 2) * 2 + 16;
        // SAFETY: LossRecord is integers; zero bytes are valid.
        let losses = unsafe { map_slice::<LossRecord>(most, true) }?;
        let total = marked.aggregate(site_of, losses);
        let first = self.header.first_record.load(Relaxed);
        let half = self.ledger.capacity(AreaId::CheckRecords) / 2;
        let mut written = 0;
        let mut put = |loss: &LossRecord, heuristic: Option<Heuristic>| {
            let direct = match heuristic {
                Some(heuristic) => loss.by_heuristic[heuristic as usize],
                None => {
                    let mut rest = loss.direct;
                    for part in loss.by_heuristic {
                        rest.blocks -= part.blocks.min(rest.blocks);
                        rest.bytes -= part.bytes.min(rest.bytes);
                    }
                    rest
                }
            };
            if direct.blocks == 0 {
                return;
            }
            let record = (written < half).then(|| self.ledger.check_record(first + written)).flatten();
            let Some(record) = record else {
                self.header.lost_records.fetch_add(1, Relaxed);
                return;
            };
            record.site.store(loss.site().0, Relaxed);
            record.kind.store(loss.kind() as u32, Relaxed);
            record.heuristic.store(heuristic.map_or(NO_HEURISTIC, |heuristic| heuristic as u32), Relaxed);
            record.blocks.store(direct.blocks, Relaxed);
            record.bytes.store(direct.bytes, Relaxed);
            let indirect = if heuristic.is_none() { loss.indirect } else { Default::default() };
            record.indirect_blocks.store(indirect.blocks, Relaxed);
            record.indirect_bytes.store(indirect.bytes, Relaxed);
            record.addresses.iter().for_each(|address| address.store(0, Relaxed));
            written += 1;
        };
        for loss in losses.get(..total.records)? {
            put(loss, None);
            for heuristic in Heuristic::ALL {
                put(loss, Some(heuristic));
            }
        }
        self.header.records.store(written, Relaxed);
        self.ledger.publish(AreaId::CheckRecords, first + written);
        self.sample_addresses(marked, first, written)
    }

    /// Writes the addresses of up to three blocks of each record of lost blocks.
    fn sample_addresses(&self, marked: &Marked<'_, HeapBlocks>, first: u32, records: u32) -> Option<()> {
        if !flag(flags::SAMPLE_ADDRESSES) {
            return Some(());
        }
        let most_sites = self.ledger.used(AreaId::Sites) as usize;
        // SAFETY: integers.
        let by_site = unsafe { map_slice::<u32>(most_sites * 4, false) }?;
        for number in 0..records {
            let record = self.ledger.check_record(first + number)?;
            let (site, kind) = (record.site.load(Relaxed) as usize, record.kind.load(Relaxed) as usize);
            if kind != LeakKind::StillReachable as usize
                && let Some(slot) = by_site.get_mut(site * 4 + kind)
            {
                *slot = number + 1;
            }
        }
        let blocks = marked.blocks();
        for number in 0..blocks.len() {
            let (kind, block) = (marked.kind(number)? as usize, blocks.get(number)?);
            if kind == LeakKind::StillReachable as usize {
                continue;
            }
            let slot = by_site.get(blocks.site(number) as usize * 4 + kind).copied().unwrap_or(0);
            if slot != 0
                && let Some(free) =
                    self.ledger.check_record(first + slot - 1)?.addresses.iter().find(|a| a.load(Relaxed) == 0)
            {
                free.store(block.start.0, Relaxed);
            }
        }
        Some(())
    }
}
