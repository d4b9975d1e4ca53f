//! The calls that change the address space.

use leakscope_translate::Engine;

use super::{Call, raw};
use crate::engine::{Memcheck, forget_shadow};
use crate::space::{HIGH, LOW, Mapping, PROGRAM_END, Space, Use};

const PAGE: u64 = 4096;
const ENOMEM: i64 = -(libc::ENOMEM as i64);
const EINVAL: i64 = -(libc::EINVAL as i64);
/// Files up to this size go below 2 GB.
const LARGEST_LOW: u64 = 256 << 20;

fn pages(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(PAGE)
}

/// The path behind a descriptor.
fn path_of(fd: i32) -> Vec<u8> {
    let link = std::ffi::CString::new(format!("/proc/self/fd/{fd}")).unwrap_or_default();
    let mut buffer = vec![0u8; 4096];
    // SAFETY: a buffer as long as said.
    let length = unsafe { libc::readlink(link.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    buffer.truncate(length.max(0) as usize);
    buffer
}

fn system_mmap(arguments: [u64; 6]) -> i64 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: at a place that the space has found to be the target's.
    unsafe { raw(libc::SYS_mmap as u64, a, b, c, d, e, f) }
}

impl Memcheck {
    /// A range holds something else now.
    pub(super) fn changed(&mut self, engine: &mut Engine, start: u64, end: u64) {
        forget_shadow(start, end - start);
        engine.mapping_changed(start, end);
    }

    pub(super) fn map(&mut self, engine: &mut Engine, arguments: [u64; 6]) -> i64 {
        let [address, bytes, protection, flags, fd, offset] = arguments;
        let Some(bytes) = pages(bytes).filter(|&bytes| bytes > 0) else { return if bytes == 0 { EINVAL } else { ENOMEM } };
        let is_fixed = flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) as u64 != 0;
        let is_file = flags & libc::MAP_ANONYMOUS as u64 == 0;
        let result = if is_fixed {
            if !address.is_multiple_of(PAGE) {
                return EINVAL;
            }
            if !Space::is_allowed(address, bytes) {
                return ENOMEM;
            }
            system_mmap(arguments)
        } else {
            self.map_anywhere(arguments, bytes, is_file)
        };
        if result < 0 && result > -4096 {
            return result;
        }
        let start = result as u64;
        if self.modules_unmapped(start, start + bytes) {
            self.unhook_range(engine, start, start + bytes);
        }
        let usage = if is_file {
            let path = path_of(fd as i32);
            Use::File { path: self.space.intern_path(&path), offset }
        } else {
            Use::Anonymous
        };
        self.space.add(Mapping {
            start,
            end: start + bytes,
            protection: protection as i32,
            shared: flags & libc::MAP_SHARED as u64 != 0,
            usage,
        });
        self.changed(engine, start, start + bytes);
        if protection as i32 & libc::PROT_EXEC != 0 {
            self.code_mapped(engine, start);
        }
        result
    }

    /// A place that suits: what may hold code low, other memory high; the hint if it is free.
    fn map_anywhere(&mut self, arguments: [u64; 6], bytes: u64, is_file: bool) -> i64 {
        let [hint, length, protection, flags, fd, offset] = arguments;
        let hint = hint & !(PAGE - 1);
        let at = |address: u64| {
            system_mmap([address, length, protection, flags | libc::MAP_FIXED_NOREPLACE as u64, fd, offset])
        };
        if hint != 0 && Space::is_allowed(hint, bytes) && self.space.is_free(hint, hint + bytes) {
            let result = at(hint);
            if result != -i64::from(libc::EEXIST) {
                return result;
            }
        }
        let is_code = protection as i32 & libc::PROT_EXEC != 0;
        let is_low = flags & libc::MAP_32BIT as u64 != 0 || (is_code || is_file) && bytes <= LARGEST_LOW;
        let ranges = if is_low { [LOW, HIGH] } else { [HIGH, LOW] };
        for range in ranges {
            let mut from = range.start;
            // Something of the engine's may be in the way: go on behind it.
            while let Some(place) = self.space.room(bytes, &range, from) {
                let result = at(place);
                if result != -i64::from(libc::EEXIST) {
                    return result;
                }
                from = place + (1 << 20);
            }
        }
        ENOMEM
    }

    /// Code of a file was mapped: whoever is to be replaced in it is.
    pub fn code_mapped(&mut self, engine: &mut Engine, start: u64) {
        let Some(mapping) = self.space.find(start) else { return };
        let Use::File { path, offset } = mapping.usage else { return };
        let path = self.space.path(path).to_vec();
        let found = self.module_mapped(&path, start, offset);
        self.install(engine, found);
    }

    pub(super) fn unmap(&mut self, engine: &mut Engine, arguments: [u64; 6]) -> i64 {
        let (start, bytes) = (arguments[0], arguments[1]);
        let Some(bytes) = pages(bytes).filter(|&bytes| bytes > 0 && start.is_multiple_of(PAGE)) else { return EINVAL };
        if !Space::is_allowed(start, bytes) {
            return EINVAL;
        }
        // SAFETY: the target's own range.
        let result = unsafe { raw(libc::SYS_munmap as u64, start, bytes, 0, 0, 0, 0) };
        if result == 0 {
            self.gone(engine, start, start + bytes);
        }
        result
    }

    fn gone(&mut self, engine: &mut Engine, start: u64, end: u64) {
        self.space.remove(start, end);
        if self.modules_unmapped(start, end) {
            self.unhook_range(engine, start, end);
        }
        self.changed(engine, start, end);
    }

    pub(super) fn protect(&mut self, engine: &mut Engine, call: Call) -> i64 {
        let [start, bytes, protection, ..] = call.arguments;
        let Some(bytes) = pages(bytes).filter(|_| start.is_multiple_of(PAGE)) else { return EINVAL };
        if !Space::is_allowed(start, bytes) {
            return ENOMEM;
        }
        let result = call.perform();
        if result == 0 && bytes > 0 {
            self.space.protect(start, start + bytes, protection as i32);
            engine.mapping_changed(start, start + bytes);
            if protection as i32 & libc::PROT_EXEC != 0 {
                self.code_mapped(engine, start);
            }
        }
        result
    }

    pub(super) fn advise(&mut self, engine: &mut Engine, call: Call) -> i64 {
        let [start, bytes, ..] = call.arguments;
        if !Space::is_allowed(start, bytes) {
            return ENOMEM;
        }
        let result = call.perform();
        if call.arguments[2] as i32 == libc::MADV_DONTNEED {
            engine.mapping_changed(start, start + bytes.next_multiple_of(PAGE));
        }
        result
    }

    pub(super) fn brk(&mut self, engine: &mut Engine, wanted: u64) -> i64 {
        let (first, now) = self.program.brk;
        if wanted < first || wanted > PROGRAM_END {
            return now as i64;
        }
        let (old_end, new_end) = (now.next_multiple_of(PAGE), wanted.next_multiple_of(PAGE));
        if new_end > old_end {
            let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
            let rights = (libc::PROT_READ | libc::PROT_WRITE) as u64;
            let bytes = new_end - old_end;
            if !self.space.is_free(old_end, new_end)
                || system_mmap([old_end, bytes, rights, flags, u64::MAX, 0]) as u64 != old_end
            {
                return now as i64;
            }
            let (start, end, protection) = (old_end, new_end, rights as i32);
            self.space.add(Mapping { start, end, protection, shared: false, usage: Use::Brk });
            self.changed(engine, old_end, new_end);
        } else if new_end < old_end {
            // SAFETY: what this function mapped before.
            unsafe { raw(libc::SYS_munmap as u64, new_end, old_end - new_end, 0, 0, 0, 0) };
            self.gone(engine, new_end, old_end);
        }
        // Between the brk and the end of its page nothing may be used.
        crate::engine::shadow().allow(wanted.min(now), wanted.abs_diff(now));
        crate::engine::shadow().forbid(wanted, new_end - wanted);
        self.program.brk.1 = wanted;
        wanted as i64
    }

    pub(super) fn remap(&mut self, engine: &mut Engine, arguments: [u64; 6]) -> i64 {
        let [old, old_bytes, new_bytes, flags, target, _] = arguments;
        let Some(old_bytes) = pages(old_bytes) else { return EINVAL };
        let Some(new_bytes) = pages(new_bytes).filter(|&bytes| bytes > 0) else { return EINVAL };
        let Some(mapping) = self.space.find(old).cloned() else { return -i64::from(libc::EFAULT) };
        let may_move = flags & libc::MREMAP_MAYMOVE as u64 != 0;
        let call = |flags: u64, target: u64| {
            // SAFETY: the target's own mapping, to a place that the space has found to be the target's.
            unsafe { raw(libc::SYS_mremap as u64, old, old_bytes, new_bytes, flags, target, 0) }
        };
        let result = if flags & libc::MREMAP_FIXED as u64 != 0 {
            if !Space::is_allowed(target, new_bytes) {
                return EINVAL;
            }
            call(flags, target)
        } else {
            let fits = Space::is_allowed(old, new_bytes);
            let in_place = if fits && old_bytes > 0 { call(0, 0) } else { ENOMEM };
            if in_place != ENOMEM || !may_move {
                in_place
            } else {
                let range = if LOW.contains(&old) { LOW } else { HIGH };
                let Some(place) = self.space.room(new_bytes, &range, range.start) else { return ENOMEM };
                call(flags | libc::MREMAP_FIXED as u64, place)
            }
        };
        if result < 0 {
            return result;
        }
        let new = result as u64;
        let kept = old_bytes.min(new_bytes);
        let shadow = crate::engine::shadow();
        if new == old {
            if new_bytes > old_bytes {
                self.changed(engine, old + old_bytes, old + new_bytes);
            } else if new_bytes < old_bytes {
                self.gone(engine, old + new_bytes, old + old_bytes);
            }
        } else {
            forget_shadow(new, new_bytes);
            shadow.copy(old, new, kept);
            self.gone(engine, old, old + old_bytes);
            engine.mapping_changed(new, new + new_bytes);
        }
        let usage = match mapping.usage {
            Use::File { path, offset } => Use::File { path, offset: offset + (old - mapping.start) },
            other => other,
        };
        self.space.add(Mapping { start: new, end: new + new_bytes, usage, ..mapping });
        result
    }

    pub(super) fn attach_shared(&mut self, engine: &mut Engine, arguments: [u64; 6]) -> i64 {
        let [id, address, flags, ..] = arguments;
        // SAFETY: shmid_ds is plain old data.
        let mut facts: libc::shmid_ds = unsafe { std::mem::zeroed() };
        // SAFETY: a live structure.
        if unsafe { libc::shmctl(id as i32, libc::IPC_STAT, &mut facts) } != 0 {
            return -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL));
        }
        let Some(bytes) = pages(facts.shm_segsz as u64) else { return ENOMEM };
        let place = if address != 0 {
            address & !(PAGE - 1)
        } else {
            match self.space.room(bytes, &HIGH, HIGH.start) {
                Some(place) => place,
                None => return ENOMEM,
            }
        };
        if !Space::is_allowed(place, bytes) {
            return EINVAL;
        }
        // SAFETY: a free place of the target's, or one that it names itself.
        let result = unsafe { raw(libc::SYS_shmat as u64, id, place, flags, 0, 0, 0) };
        if result < 0 {
            return result;
        }
        let start = result as u64;
        let write = if flags as i32 & libc::SHM_RDONLY != 0 { 0 } else { libc::PROT_WRITE };
        let protection = libc::PROT_READ | write;
        self.space.add(Mapping { start, end: start + bytes, protection, shared: true, usage: Use::Anonymous });
        self.changed(engine, start, start + bytes);
        result
    }

    pub(super) fn detach_shared(&mut self, engine: &mut Engine, arguments: [u64; 6]) -> i64 {
        let start = arguments[0];
        let Some(end) = self.space.find(start).filter(|mapping| mapping.start == start).map(|mapping| mapping.end) else {
            return EINVAL;
        };
        // SAFETY: the target's own.
        let result = unsafe { raw(libc::SYS_shmdt as u64, start, 0, 0, 0, 0, 0) };
        if result == 0 {
            self.gone(engine, start, end);
        }
        result
    }
}
