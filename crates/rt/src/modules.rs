//! Which objects are mapped where, and since when.
//!
//! The list is compared with the dynamic linker's when a stack is new (one cheap call tells whether anything was
//! added or removed), after `dlclose`, and before a leak check. The linker's list is collected with no lock of ours
//! held: a thread inside `dlopen` may hold the linker's lock and wait for ours. What is needed of an object is copied while
//! the linker's lock is held: a moment later another thread may have unmapped it.

use crate::memory::{Lock, LockGuard, map_slice};
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_int, c_void};
use core::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use leakscope_ledger::layout::{AreaId, MODULES};
use leakscope_ledger::writer::Ledger;

/// `dl_iterate_phdr`.
pub type IteratePhdr = unsafe extern "C" fn(
    unsafe extern "C" fn(*mut libc::dl_phdr_info, usize, *mut c_void) -> c_int,
    *mut c_void,
) -> c_int;

const MOST: usize = MODULES as usize;
const BUILD_ID_WORDS: usize = 8;
/// Room for the names of all objects; only what is written takes memory.
const NAME_BYTES: usize = MOST * 512;

/// A mapped object, as the linker tells it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Mapped {
    /// Lowest address.
    pub start: u64,
    /// One past the highest address.
    pub end: u64,
    /// Run-time address less link-time address.
    pub load_bias: u64,
    /// Hash of the linker's name for it.
    name: u64,
    /// The name among those that were collected with it: first byte and length.
    name_at: (u32, u32),
    /// Build id, and its length in bytes.
    build_id: [u32; BUILD_ID_WORDS],
    build_id_bytes: u32,
    /// Module record and epoch, once it has one.
    record: u32,
    /// Epoch at which it was seen first.
    epoch: u32,
}

impl Mapped {
    const NONE: Self = Self {
        start: 0,
        end: 0,
        load_bias: 0,
        name: 0,
        name_at: (0, 0),
        build_id: [0; BUILD_ID_WORDS],
        build_id_bytes: 0,
        record: 0,
        epoch: 0,
    };

    /// Number of its record in the ledger; `u32::MAX` when there was no room for one.
    pub fn record(&self) -> u32 {
        self.record
    }

    #[cfg(test)]
    pub(crate) fn for_tests(start: u64, end: u64, load_bias: u64) -> Self {
        Self { start, end, load_bias, ..Self::NONE }
    }
}

/// The list of one process.
pub struct ModuleList {
    iterate: AtomicUsize,
    version: AtomicU64,
    /// Threads of ours inside the linker's list, and whether a fork wants it left alone.
    inside: AtomicU32,
    closed: AtomicU32,
    lock: Lock,
    live: UnsafeCell<Live>,
}

struct Live {
    list: &'static mut [Mapped],
    len: usize,
    scratch_version: u64,
}

// SAFETY: `live` is touched only under `lock`.
unsafe impl Sync for ModuleList {}

/// The list while nobody can change it.
pub struct ModulesGuard<'a> {
    list: &'a [Mapped],
    current_epoch: u32,
    _guard: LockGuard<'a>,
}

impl ModulesGuard<'_> {
    /// The module that holds an address.
    pub fn find(&self, pc: u64) -> Option<&Mapped> {
        let after = self.list.partition_point(|module| module.start <= pc);
        self.list.get(after.checked_sub(1)?).filter(|module| pc < module.end)
    }

    /// The epoch of the module that holds a return address; the present one for code of no module.
    pub fn epoch_of(&self, pc: u64) -> u32 {
        self.find(pc.wrapping_sub(1)).map_or(self.current_epoch, |module| module.epoch)
    }

    /// All modules, by address.
    pub fn all(&self) -> &[Mapped] {
        self.list
    }
}

struct Collected {
    list: &'static mut [Mapped],
    len: usize,
    names: &'static mut [u8],
    names_len: usize,
    version: u64,
}

impl ModuleList {
    /// An empty list; [`ModuleList::start`] before use.
    pub const fn new() -> Self {
        Self {
            iterate: AtomicUsize::new(0),
            version: AtomicU64::new(0),
            inside: AtomicU32::new(0),
            closed: AtomicU32::new(0),
            lock: Lock::new(),
            live: UnsafeCell::new(Live { list: &mut [], len: 0, scratch_version: 0 }),
        }
    }

    /// Tells how to ask the linker.
    pub fn start(&self, iterate: IteratePhdr) {
        self.iterate.store(iterate as usize, Release);
    }

    fn iterate(&self) -> Option<IteratePhdr> {
        let address = self.iterate.load(Relaxed);
        if address == 0 {
            return None;
        }
        // SAFETY: `start` stored a function of this type.
        Some(unsafe { core::mem::transmute::<usize, IteratePhdr>(address) })
    }

    /// Brings the list up to date if the linker's has changed. True when modules have gone: then the epoch has risen,
    /// and the caller must make the unwinder forget.
    pub fn refresh(&self, ledger: &Ledger) -> bool {
        self.inside.fetch_add(1, SeqCst);
        let gone = self.closed.load(SeqCst) == 0 && self.refresh_inside(ledger);
        self.inside.fetch_sub(1, SeqCst);
        gone
    }

    fn refresh_inside(&self, ledger: &Ledger) -> bool {
        let Some(iterate) = self.iterate() else { return false };
        let mut version = 0u64;
        // SAFETY: the callback writes one u64 to `version` and ends the iteration.
        unsafe { iterate(read_version, (&raw mut version).cast()) };
        if version == self.version.load(Relaxed) {
            return false;
        }
        // SAFETY: Mapped is integers only.
        let Some(list) = (unsafe { map_slice::<Mapped>(MOST, false) }) else { return false };
        // SAFETY: bytes.
        let Some(names) = (unsafe { map_slice::<u8>(NAME_BYTES, false) }) else {
            // SAFETY: nobody else has seen it.
            unsafe { crate::memory::unmap_slice(list) };
            return false;
        };
        let mut collected = Collected { list, len: 0, names, names_len: 0, version: 0 };
        // SAFETY: the callback gets exactly this structure.
        unsafe { iterate(collect, (&raw mut collected).cast()) };
        collected.name_program();
        let Collected { list, len, names, version, .. } = collected;
        let gone = self.merge(ledger, list, len, names, version);
        // SAFETY: nothing keeps a name.
        unsafe { crate::memory::unmap_slice(names) };
        gone
    }

    fn merge(
        &self,
        ledger: &Ledger,
        fresh: &'static mut [Mapped],
        fresh_len: usize,
        names: &[u8],
        version: u64,
    ) -> bool {
        if let Some(used) = fresh.get_mut(..fresh_len) {
            used.sort_unstable_by_key(|module| module.start);
        }
        let _guard = self.lock.lock();
        // SAFETY: under the lock.
        let live = unsafe { &mut *self.live.get() };
        if live.scratch_version >= version {
            // SAFETY: nobody else has seen this list.
            unsafe { crate::memory::unmap_slice(fresh) };
            return false;
        }
        let Some(fresh_used) = fresh.get_mut(..fresh_len) else { return false };
        let old = live.list.get(..live.len).unwrap_or(&[]);
        let same = |a: &Mapped, b: &Mapped| {
            a.start == b.start && a.end == b.end && a.load_bias == b.load_bias && a.name == b.name
        };
        let mut removed = false;
        let epoch = ledger.header().epoch.load(Relaxed);
        for gone in old.iter().filter(|module| !fresh_used.iter().any(|now| same(module, now))) {
            removed = true;
            if let Some(record) = ledger.module(gone.record) {
                record.unloaded_epoch.store(epoch + 1, Relaxed);
            }
        }
        let epoch = epoch + u32::from(removed);
        for module in fresh_used.iter_mut() {
            if let Some(known) = old.iter().find(|known| same(known, module)) {
                (module.record, module.epoch) = (known.record, known.epoch);
            } else {
                (module.record, module.epoch) = store_record(ledger, module, names, epoch);
            }
        }
        ledger.header().epoch.store(epoch, Release);
        let replaced = core::mem::replace(&mut live.list, fresh);
        // SAFETY: only guards refer to the list, and this thread holds the lock.
        unsafe { crate::memory::unmap_slice(replaced) };
        live.len = fresh_len;
        live.scratch_version = version;
        self.version.store(version, Release);
        removed
    }

    /// The list, locked.
    pub fn read(&self, ledger: &Ledger) -> ModulesGuard<'_> {
        self.guarded(ledger, self.lock.lock())
    }

    /// The list, if nobody has it locked: for a signal handler, which may have interrupted the holder.
    pub fn try_read(&self, ledger: &Ledger) -> Option<ModulesGuard<'_>> {
        self.lock.try_lock().map(|guard| self.guarded(ledger, guard))
    }

    fn guarded<'a>(&'a self, ledger: &Ledger, guard: LockGuard<'a>) -> ModulesGuard<'a> {
        // SAFETY: under the lock, which the result holds.
        let live = unsafe { &*self.live.get() };
        ModulesGuard {
            list: live.list.get(..live.len).unwrap_or(&[]),
            current_epoch: ledger.header().epoch.load(Relaxed),
            _guard: guard,
        }
    }

    /// Whether nobody has the list locked.
    pub fn is_open(&self) -> bool {
        self.lock.is_open()
    }

    /// Takes the lock for the time of a `fork`, with no thread of ours in the linker's list: the linker's own lock would
    /// stay locked in the child. Waits for a second at most.
    pub fn before_fork(&self) {
        self.closed.store(1, SeqCst);
        for _ in 0..10_000 {
            if self.inside.load(SeqCst) == 0 {
                break;
            }
            crate::raw::sleep_ns(100_000);
        }
        self.lock.acquire();
    }

    /// Opens the lock that [`ModuleList::before_fork`] took; in the parent.
    pub fn after_fork_in_parent(&self) {
        self.lock.release();
        self.closed.store(0, SeqCst);
    }

    /// The same in the child. If the parent had more threads, one of them may have held the linker's lock: the list then
    /// stays as it is, and what the child loads later has no names.
    pub fn after_fork_in_child(&self, had_threads: bool) {
        self.lock.release();
        self.inside.store(0, SeqCst);
        self.closed.store(u32::from(had_threads), SeqCst);
    }
}

impl Default for ModuleList {
    fn default() -> Self {
        Self::new()
    }
}

/// Additions and removals so far, as one number that only grows.
fn version_of(info: &libc::dl_phdr_info) -> u64 {
    info.dlpi_adds.wrapping_add(info.dlpi_subs)
}

unsafe extern "C" fn read_version(info: *mut libc::dl_phdr_info, _: usize, out: *mut c_void) -> c_int {
    // SAFETY: the linker gives a valid structure, `refresh` a u64.
    unsafe { *out.cast::<u64>() = version_of(&*info) };
    1
}

unsafe extern "C" fn collect(info: *mut libc::dl_phdr_info, _: usize, out: *mut c_void) -> c_int {
    // SAFETY: the linker gives a valid structure, `refresh` a Collected.
    let (info, out) = unsafe { (&*info, &mut *out.cast::<Collected>()) };
    out.version = version_of(info);
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: the linker's program headers are mapped as long as the object is.
    let headers = unsafe { core::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let (mut start, mut end, mut build_id) = (u64::MAX, 0, (0u64, 0u32));
    for header in headers {
        let at = info.dlpi_addr.wrapping_add(header.p_vaddr);
        match header.p_type {
            libc::PT_LOAD => {
                start = start.min(at & !4095);
                end = end.max(at.wrapping_add(header.p_memsz));
            }
            // SAFETY: a note segment lies inside a loaded one.
            libc::PT_NOTE => build_id = unsafe { find_build_id(at, header.p_memsz) }.unwrap_or(build_id),
            _ => {}
        }
    }
    if start < end {
        let name: &[u8] = if info.dlpi_name.is_null() {
            &[]
        } else {
            // SAFETY: the linker's name of an object is a C string that lives as long as the object.
            unsafe { CStr::from_ptr(info.dlpi_name) }.to_bytes()
        };
        let name_at = out.keep_name(name);
        let mut module = Mapped { start, end, load_bias: info.dlpi_addr, name_at, record: u32::MAX, ..Mapped::NONE };
        module.name = name
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        module.build_id_bytes = build_id.1.min(size_of_val(&module.build_id) as u32);
        for (i, word) in module.build_id.iter_mut().enumerate().take(module.build_id_bytes.div_ceil(4) as usize) {
            // SAFETY: `find_build_id` saw these bytes; notes are padded to four bytes.
            *word = unsafe { ((build_id.0 + i as u64 * 4) as *const u32).read_unaligned() };
        }
        if let Some(slot) = out.list.get_mut(out.len) {
            *slot = module;
            out.len += 1;
        }
    }
    0
}

impl Collected {
    /// Copies a name; gives its place, or that of an empty one when there is no room.
    fn keep_name(&mut self, name: &[u8]) -> (u32, u32) {
        let at = self.names_len;
        match self.names.get_mut(at..at + name.len()) {
            Some(room) => room.copy_from_slice(name),
            None => return (0, 0),
        }
        self.names_len += name.len();
        (at as u32, name.len() as u32)
    }

    /// The linker has no name for the program itself.
    fn name_program(&mut self) {
        let Some(room) = self.names.get_mut(self.names_len..) else { return };
        let length = read_link(c"/proc/self/exe", room);
        let name_at = (self.names_len as u32, length as u32);
        self.names_len += length;
        for module in self.list.iter_mut().take(self.len).filter(|module| module.name_at.1 == 0) {
            module.name_at = name_at;
        }
    }
}

/// Address and length of the GNU build id in the notes at `at`.
///
/// # Safety
/// `at` is mapped and readable for `bytes`.
unsafe fn find_build_id(at: u64, bytes: u64) -> Option<(u64, u32)> {
    const GNU_BUILD_ID: u32 = 3;
    let mut offset = 0u64;
    while offset + 16 <= bytes {
        // SAFETY: 16 bytes from here are inside the segment.
        let [name_bytes, data_bytes, kind, name] = unsafe { ((at + offset) as *const [u32; 4]).read_unaligned() };
        let data = offset + 12 + u64::from(name_bytes).next_multiple_of(4);
        let next = data + u64::from(data_bytes).next_multiple_of(4);
        if next > bytes {
            return None;
        }
        if kind == GNU_BUILD_ID && name_bytes == 4 && name == u32::from_le_bytes(*b"GNU\0") {
            return Some((at + data, data_bytes));
        }
        offset = next;
    }
    None
}

/// Writes a module record; `u32::MAX` when there is no room. Gives its number and the epoch of its code.
///
/// A program may load and unload the same plug-in for weeks. What comes back to its old place gets its old record and
/// epoch, and so its old sites.
fn store_record(ledger: &Ledger, module: &Mapped, names: &[u8], epoch: u32) -> (u32, u32) {
    let (at, length) = (module.name_at.0 as usize, module.name_at.1 as usize);
    // What has no slash is no file, such as the kernel's page.
    let path = names.get(at..at + length).filter(|name| name.contains(&b'/')).unwrap_or(&[]);
    let (build_id, build_id_bytes) = (module.build_id, module.build_id_bytes);
    for number in 0..ledger.used(AreaId::Modules) {
        let Some(record) = ledger.module(number) else { break };
        if record.unloaded_epoch.load(Relaxed) != u32::MAX
            && record.start.load(Relaxed) == module.start
            && record.end.load(Relaxed) == module.end
            && record.load_bias.load(Relaxed) == module.load_bias
            && record.build_id_bytes.load(Relaxed) == build_id_bytes
            && record.build_id.iter().zip(&build_id).all(|(old, new)| old.load(Relaxed) == *new)
            && ledger.string_is(record.path.load(Relaxed), path)
        {
            record.unloaded_epoch.store(u32::MAX, Relaxed);
            return (number, record.loaded_epoch.load(Relaxed));
        }
    }
    let Some(number) = ledger.claim(AreaId::Modules, 1) else {
        ledger.header().lost.modules.fetch_add(1, Relaxed);
        return (u32::MAX, epoch);
    };
    let Some(record) = ledger.module(number) else { return (u32::MAX, epoch) };
    record.start.store(module.start, Relaxed);
    record.end.store(module.end, Relaxed);
    record.load_bias.store(module.load_bias, Relaxed);
    record.path.store(ledger.store_string(path), Relaxed);
    record.loaded_epoch.store(epoch, Relaxed);
    record.unloaded_epoch.store(u32::MAX, Relaxed);
    for (word, new) in record.build_id.iter().zip(build_id) {
        word.store(new, Relaxed);
    }
    record.build_id_bytes.store(build_id_bytes, Release);
    (number, epoch)
}

/// Reads a symbolic link; the bytes of its target.
pub fn read_link(path: &CStr, buffer: &mut [u8]) -> usize {
    let args = [path.as_ptr() as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
    // SAFETY: the kernel writes at most `buffer.len()` bytes.
    unsafe { crate::raw::syscall(crate::raw::nr::READLINK, args) }.unwrap_or(0)
}
