//! `mmap` and its family: where things go, what the engine does not let go, and who is told.

use std::ops::Range;
use std::sync::Arc;

use crate::dispatch::{EFAULT, EINVAL, ENOMEM, EPERM};
use crate::space::{Backing, HEAP, Mapping, PAGE, page_up};
use crate::task::Task;
use crate::{Cpu, Monitor, raw};

const EEXIST: i64 = -(libc::EEXIST as i64);

/// Addresses of user space, for what is checked before anything else.
const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// How often another place is tried when something unknown is in the way.
const TRIES: usize = 64;

const HUGE_SHIFT: u32 = 26;

/// `SHM_RDONLY` and its like, which libc has with other types.
const SHM_READ_ONLY: u64 = 0o10000;
const SHM_REMAP: u64 = 0o40000;
const SHM_EXEC: u64 = 0o100000;

/// A memory call of ours on memory of the target.
fn call(number: i64, arguments: [u64; 6]) -> i64 {
    // SAFETY: the ranges were found to be the target's, or free.
    unsafe { raw::syscall(number, arguments) }
}

/// Whether a descriptor is an ELF file: such mappings hold code, or what code refers to.
fn is_elf(descriptor: i32) -> bool {
    let mut magic = [0_u8; 4];
    let arguments = [descriptor as u64, magic.as_mut_ptr() as u64, 4, 0, 0, 0];
    call(libc::SYS_pread64, arguments) == 4 && &magic == b"\x7fELF"
}

/// The name behind a descriptor.
fn path_of(descriptor: i32) -> Arc<[u8]> {
    let link = format!("/proc/self/fd/{descriptor}\0");
    let mut name = [0_u8; 4096];
    let arguments = [link.as_ptr() as u64, name.as_mut_ptr() as u64, name.len() as u64, 0, 0, 0];
    let length = call(libc::SYS_readlink, arguments);
    usize::try_from(length).map_or_else(|_| Arc::default(), |length| Arc::from(&name[..length]))
}

/// What an `mmap` asks for, with whole pages.
#[derive(Clone, Copy)]
struct Request {
    address: u64,
    bytes: u64,
    protection: u64,
    flags: u64,
    descriptor: u64,
    offset: u64,
    is_elf: bool,
    /// The dynamic loader takes room for a file that it will align and map.
    is_reserve: bool,
}

impl Request {
    fn has(&self, flag: i32) -> bool {
        self.flags & flag as u64 != 0
    }

    fn is_anonymous(&self) -> bool {
        self.has(libc::MAP_ANONYMOUS)
    }

    fn at(&self, address: u64, flag: i32) -> i64 {
        let flags =
            self.flags & !((libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE | libc::MAP_32BIT) as u64) | flag as u64;
        call(libc::SYS_mmap, [address, self.bytes, self.protection, flags, self.descriptor, self.offset])
    }

    fn mapping(&self, start: u64) -> Mapping {
        let backing = if self.is_anonymous() {
            Backing::Anonymous
        } else {
            // Names are for code and its data; asking for each file would cost a call.
            let path = if self.is_elf || self.protection & libc::PROT_EXEC as u64 != 0 {
                path_of(self.descriptor as i32)
            } else {
                Arc::default()
            };
            Backing::File { path, offset: self.offset }
        };
        let shared = self.flags & libc::MAP_TYPE as u64 != libc::MAP_PRIVATE as u64;
        Mapping { start, end: start + self.bytes, protection: self.protection as i32, shared, backing }
    }
}

impl<C: Cpu, M: Monitor<C> + 'static> Task<C, M> {
    fn has_room(&mut self, bytes: u64) -> bool {
        let process = self.process();
        process.space.mapped_bytes().saturating_add(bytes) <= process.limits.address_space()
    }

    /// The list first, so that the monitor finds it as it is now.
    fn tell_mapped(&mut self, cpu: &mut C, mapping: Mapping) {
        cpu.mapping_changed(mapping.start, mapping.end);
        self.process().space.record(mapping.clone());
        self.monitor().mapped(cpu, &mapping);
    }

    fn tell_unmapped(&mut self, cpu: &mut C, start: u64, end: u64) {
        cpu.mapping_changed(start, end);
        let space = &mut self.process().space;
        let parts: Vec<Range<u64>> =
            space.within(start, end).map(|part| part.start.max(start)..part.end.min(end)).collect();
        space.remove(start, end);
        for part in parts {
            self.monitor().unmapped(cpu, part.start, part.end);
        }
    }

    pub(crate) fn mmap(&mut self, cpu: &mut C, a: [u64; 6]) -> i64 {
        let [address, length, protection, flags, descriptor, offset] = a;
        let has = |flag: i32| flags & flag as u64 != 0;
        if length == 0 || !offset.is_multiple_of(PAGE) {
            return EINVAL;
        }
        let Some(bytes) = self.mapping_length(length, flags) else { return ENOMEM };
        let is_elf = !has(libc::MAP_ANONYMOUS) && is_elf(descriptor as i32);
        let is_reserve = has(libc::MAP_ANONYMOUS)
            && protection == libc::PROT_NONE as u64
            && self.process().setup.interpreter.contains(&cpu.guest().rip);
        let request = Request { address, bytes, protection, flags, descriptor, offset, is_elf, is_reserve };
        let start = if has(libc::MAP_FIXED) || has(libc::MAP_FIXED_NOREPLACE) {
            self.map_fixed(&request)
        } else {
            self.map_somewhere(&request)
        };
        if start >= 0 {
            self.tell_mapped(cpu, request.mapping(start as u64));
        }
        start
    }

    /// In whole pages, huge ones where they are asked for.
    fn mapping_length(&mut self, length: u64, flags: u64) -> Option<u64> {
        let mut bytes = page_up(length).filter(|&bytes| bytes <= TASK_SIZE)?;
        if flags & libc::MAP_HUGETLB as u64 != 0 {
            let shift = match flags >> HUGE_SHIFT & 63 {
                0 => 21,
                shift => shift as u32,
            };
            bytes = bytes.checked_next_multiple_of(1_u64.checked_shl(shift)?)?;
        }
        self.has_room(bytes).then_some(bytes)
    }

    fn map_fixed(&mut self, request: &Request) -> i64 {
        let start = request.address;
        if !start.is_multiple_of(PAGE) {
            return EINVAL;
        }
        let Some(end) = start.checked_add(request.bytes).filter(|&end| end <= TASK_SIZE) else { return ENOMEM };
        if self.process().space.is_reserved(start, end) {
            return match request.has(libc::MAP_FIXED_NOREPLACE) {
                true => EEXIST,
                false if start < 0x1_0000 => EPERM,
                false => ENOMEM,
            };
        }
        if request.has(libc::MAP_FIXED_NOREPLACE) {
            return request.at(start, libc::MAP_FIXED_NOREPLACE);
        }
        request.at(start, libc::MAP_FIXED)
    }

    fn map_somewhere(&mut self, request: &Request) -> i64 {
        let hint = request.address & !(PAGE - 1);
        let wants_low = request.has(libc::MAP_32BIT);
        if hint != 0
            && !wants_low
            && let Some(end) = hint.checked_add(request.bytes)
            && self.process().space.is_free(hint, end)
        {
            let result = request.at(hint, libc::MAP_FIXED_NOREPLACE);
            if result != EEXIST {
                return result;
            }
        }
        let is_code = request.is_elf || request.is_reserve || request.protection & libc::PROT_EXEC as u64 != 0;
        for low in [true, false] {
            if low && !is_code && !wants_low || !low && wants_low {
                continue;
            }
            for _ in 0..TRIES {
                let Some(place) = self.process().space.place(request.bytes, low) else { break };
                let result = request.at(place, libc::MAP_FIXED_NOREPLACE);
                if result != EEXIST {
                    return result;
                }
            }
        }
        ENOMEM
    }

    pub(crate) fn munmap(&mut self, cpu: &mut C, [start, length, ..]: [u64; 6]) -> i64 {
        let Some((start, end)) = whole_pages(start, length) else { return EINVAL };
        for part in self.process().space.allowed(start, end) {
            let result = call(libc::SYS_munmap, [part.start, part.end - part.start, 0, 0, 0, 0]);
            if result < 0 {
                return result;
            }
            self.tell_unmapped(cpu, part.start, part.end);
        }
        0
    }

    pub(crate) fn mprotect(&mut self, cpu: &mut C, number: u64, a: [u64; 6]) -> i64 {
        let [start, length, protection, ..] = a;
        if length == 0 && start.is_multiple_of(PAGE) {
            return 0;
        }
        let Some((start, end)) = whole_pages(start, length) else { return EINVAL };
        if self.process().space.is_reserved(start, end) {
            return ENOMEM;
        }
        // Pages that are watched for writes get their own protection back first: the call may fail.
        cpu.before_write(start, end);
        cpu.mapping_changed(start, end);
        let result = call(number as i64, a);
        // A failure at a hole leaves what is before it changed.
        let mut done = end;
        if result < 0 {
            let space = &self.process().space;
            if result != ENOMEM || space.is_mapped(start, end) || space.is_lent(start) {
                return result;
            }
            done = contiguous_end(space.within(start, end), start).min(end);
        }
        self.process().space.protect(start, done, protection as i32 & 7);
        self.monitor().protected(cpu, start, done, protection as i32 & 7);
        result
    }

    pub(crate) fn mremap(&mut self, cpu: &mut C, [old, old_length, length, flags, wanted, _]: [u64; 6]) -> i64 {
        let (may_move, fixed) = (flags & 1 != 0, flags & 2 != 0);
        let keeps_old = flags & 4 != 0;
        let (Some(old_bytes), Some(bytes)) = (page_up(old_length), page_up(length)) else { return EINVAL };
        if !old.is_multiple_of(PAGE) || bytes == 0 || flags & !7 != 0 || (fixed || keeps_old) && !may_move {
            return EINVAL;
        }
        let Some(old_end) = old.checked_add(old_bytes.max(1)) else { return EINVAL };
        let Some(mapping) = self.process().space.find(old).cloned() else { return EFAULT };
        if self.process().space.is_reserved(old, old_end) {
            return EFAULT;
        }
        if fixed {
            let Some(end) = wanted.checked_add(bytes) else { return EINVAL };
            if !wanted.is_multiple_of(PAGE) || self.process().space.is_reserved(wanted, end) {
                return EINVAL;
            }
            return self.move_mapping(cpu, &mapping, old..old + old_bytes, wanted, bytes, flags);
        }
        if bytes <= old_bytes && !keeps_old {
            let result = call(libc::SYS_mremap, [old, old_bytes, bytes, 0, 0, 0]);
            if result >= 0 && bytes < old_bytes {
                self.tell_unmapped(cpu, old + bytes, old + old_bytes);
            }
            return result;
        }
        if !self.has_room(bytes.saturating_sub(old_bytes)) {
            return ENOMEM;
        }
        if old_bytes != 0
            && !keeps_old
            && let Some(end) = old.checked_add(bytes)
            && self.process().space.is_free(old + old_bytes, end)
            && call(libc::SYS_mremap, [old, old_bytes, bytes, 0, 0, 0]) >= 0
        {
            let grown = Mapping { start: old + old_bytes, end, ..continued(&mapping, old + old_bytes) };
            self.tell_mapped(cpu, grown);
            return old as i64;
        }
        if !may_move {
            return ENOMEM;
        }
        let low = mapping.protection & libc::PROT_EXEC != 0;
        let Some(place) = self.claim(bytes, low) else { return ENOMEM };
        let result = self.move_mapping(cpu, &mapping, old..old + old_bytes, place, bytes, flags | 2);
        if result < 0 {
            call(libc::SYS_munmap, [place, bytes, 0, 0, 0, 0]);
        }
        result
    }

    fn move_mapping(
        &mut self,
        cpu: &mut C,
        mapping: &Mapping,
        old: Range<u64>,
        to: u64,
        bytes: u64,
        flags: u64,
    ) -> i64 {
        let old_bytes = old.end - old.start;
        // What is watched for writes would move with its protection.
        cpu.before_write(old.start, old.end);
        let result = call(libc::SYS_mremap, [old.start, old_bytes, bytes, flags, to, 0]);
        if result < 0 {
            return result;
        }
        let moved = Mapping { start: to, end: to + bytes, ..continued(mapping, old.start) };
        self.tell_mapped(cpu, moved);
        self.monitor().moved(cpu, old.start, to, old_bytes.min(bytes));
        if flags & 4 == 0 {
            self.tell_unmapped(cpu, old.start, old.end);
        } else {
            self.monitor().discarded(cpu, old.start, old.end);
        }
        result
    }

    /// Maps a free range so that nobody else takes it.
    fn claim(&mut self, bytes: u64, low: bool) -> Option<u64> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        for low in [low, false] {
            for _ in 0..TRIES {
                let Some(place) = self.process().space.place(bytes, low) else { break };
                if call(libc::SYS_mmap, [place, bytes, 0, flags as u64, u64::MAX, 0]) >= 0 {
                    return Some(place);
                }
            }
        }
        None
    }

    /// The program break is an area of its own. Failure is the old break.
    pub(crate) fn brk(&mut self, cpu: &mut C, [wanted, ..]: [u64; 6]) -> i64 {
        let current = self.process().space.program_break;
        let (Some(old_end), Some(new_end)) = (page_up(current), page_up(wanted)) else { return current as i64 };
        let limit = self.process().limits.data();
        if !(HEAP.start..=HEAP.end).contains(&wanted) || wanted - HEAP.start > limit {
            return current as i64;
        }
        if new_end > old_end {
            let bytes = new_end - old_end;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let arguments = [old_end, bytes, protection as u64, flags as u64, u64::MAX, 0];
            if !self.has_room(bytes) || call(libc::SYS_mmap, arguments) < 0 {
                return current as i64;
            }
            let backing = Backing::Heap;
            self.tell_mapped(cpu, Mapping { start: old_end, end: new_end, protection, shared: false, backing });
        } else if new_end < old_end {
            call(libc::SYS_munmap, [new_end, old_end - new_end, 0, 0, 0, 0]);
            self.tell_unmapped(cpu, new_end, old_end);
        }
        self.process().space.program_break = wanted;
        wanted as i64
    }

    pub(crate) fn madvise(&mut self, cpu: &mut C, a: [u64; 6]) -> i64 {
        const DONTNEED_LOCKED: i32 = 24;
        let [start, length, advice, ..] = a;
        if length != 0 {
            let Some((start, end)) = whole_pages(start, length) else { return EINVAL };
            if self.process().space.is_reserved(start, end) {
                return ENOMEM;
            }
        }
        let discards = [libc::MADV_DONTNEED, libc::MADV_FREE, libc::MADV_REMOVE, DONTNEED_LOCKED];
        let is_discarded = length != 0 && discards.contains(&(advice as i32));
        let end = start.saturating_add(page_up(length).unwrap_or(0));
        if is_discarded {
            cpu.before_write(start, end);
        }
        let result = self.pass(cpu, libc::SYS_madvise as u64, a);
        if result == 0 && is_discarded {
            cpu.mapping_changed(start, end);
            self.monitor().discarded(cpu, start, end);
        }
        result
    }

    pub(crate) fn remap_file_pages(&mut self, cpu: &mut C, a: [u64; 6]) -> i64 {
        let Some((start, end)) = whole_pages(a[0], a[1]) else { return EINVAL };
        if self.process().space.is_reserved(start, end) {
            return EINVAL;
        }
        cpu.before_write(start, end);
        let result = call(libc::SYS_remap_file_pages, a);
        cpu.mapping_changed(start, end);
        result
    }

    pub(crate) fn shmat(&mut self, cpu: &mut C, [id, address, flags, ..]: [u64; 6]) -> i64 {
        /// Where `shm_segsz` is in `struct shmid64_ds`, which has 112 bytes.
        const SIZE_AT: usize = 48;
        let mut state = [0_u8; 256];
        let result = call(libc::SYS_shmctl, [id, libc::IPC_STAT as u64, state.as_mut_ptr() as u64, 0, 0, 0]);
        if result < 0 {
            return result;
        }
        let mut size = [0; 8];
        size.copy_from_slice(&state[SIZE_AT..SIZE_AT + 8]);
        let Some(bytes) = page_up(u64::from_ne_bytes(size)) else { return EINVAL };
        let start = if address == 0 {
            let low = flags & SHM_EXEC != 0;
            let Some(place) = self.claim(bytes, low) else { return ENOMEM };
            let result = call(libc::SYS_shmat, [id, place, flags | SHM_REMAP, 0, 0, 0]);
            if result < 0 {
                call(libc::SYS_munmap, [place, bytes, 0, 0, 0, 0]);
            }
            result
        } else {
            let rounded = address & !(PAGE - 1);
            let Some(end) = rounded.checked_add(bytes) else { return EINVAL };
            if self.process().space.is_reserved(rounded, end) {
                return EINVAL;
            }
            call(libc::SYS_shmat, [id, address, flags, 0, 0, 0])
        };
        if start >= 0 {
            let write = if flags & SHM_READ_ONLY == 0 { libc::PROT_WRITE } else { 0 };
            let exec = if flags & SHM_EXEC != 0 { libc::PROT_EXEC } else { 0 };
            let (start, protection) = (start as u64, libc::PROT_READ | write | exec);
            let backing = Backing::SystemV;
            self.tell_mapped(cpu, Mapping { start, end: start + bytes, protection, shared: true, backing });
        }
        start
    }

    pub(crate) fn shmdt(&mut self, cpu: &mut C, a: [u64; 6]) -> i64 {
        let found = self.process().space.find(a[0]).filter(|mapping| mapping.backing == Backing::SystemV).cloned();
        let Some(mapping) = found else { return EINVAL };
        let result = call(libc::SYS_shmdt, a);
        if result >= 0 {
            self.tell_unmapped(cpu, mapping.start, mapping.end);
        }
        result
    }
}

/// A mapping as it goes on at `at`, which may be its end.
fn continued(mapping: &Mapping, at: u64) -> Mapping {
    let mut part = mapping.clone();
    if let Backing::File { offset, .. } = &mut part.backing {
        *offset += at - mapping.start;
    }
    part
}

/// Start and end of a range that begins on a page; `None` if it does not, is empty, or leaves user space.
fn whole_pages(start: u64, length: u64) -> Option<(u64, u64)> {
    let end = start.checked_add(page_up(length)?)?;
    (start.is_multiple_of(PAGE) && length != 0 && end <= TASK_SIZE).then_some((start, end))
}

/// Where the first hole after `start` begins.
fn contiguous_end<'a>(parts: impl Iterator<Item = &'a Mapping>, start: u64) -> u64 {
    let mut end = start;
    for part in parts {
        if part.start > end {
            break;
        }
        end = part.end;
    }
    end
}
