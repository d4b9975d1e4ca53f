//! What the event log says of a caller: `/lib/libc.so.6:(__strdup+1a)[0x9e9aa]`, looked up once for each return address.
//!
//! A text is made outside of the log's lock, because it may need the linker's list of objects, and a program that is
//! inside that list may be about to allocate. Texts are never moved or changed; finding one takes no lock.
//!
//! Source: glibc 2.36 `malloc/mtrace-impl.c` (`tr_where`) for the form, `elf/dl-addr.c` for which symbol is named.

use crate::memory::{self, Lock};
use crate::modules::Mapped;
use crate::runtime::{self, MODULES};
use core::ffi::CStr;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
use leakscope_ledger::writer::Ledger;

/// Address space for texts; pages are only taken as they are filled.
const ARENA_BYTES: usize = 64 << 20;
/// Longest text: a path, and a symbol of [`MOST_NAME`].
const MOST_TEXT: usize = 4096 + MOST_NAME + 64;
/// Longer symbols are left out.
const MOST_NAME: usize = 2048;
const ENTRIES: usize = 1 << 14;
const PROBES: usize = 16;
const LENGTH_BITS: u32 = 16;

/// A return address and its text.
struct Entry {
    pc: AtomicU64,
    /// Where in the arena the text is, above [`LENGTH_BITS`] of its length.
    text: AtomicU64,
    /// Module epoch for which it is known to be right.
    epoch: AtomicU32,
    /// Number of the module's record.
    record: AtomicU32,
}

static TABLE: [Entry; ENTRIES] = [const {
    Entry { pc: AtomicU64::new(0), text: AtomicU64::new(0), epoch: AtomicU32::new(0), record: AtomicU32::new(0) }
}; ENTRIES];
static ARENA: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static ARENA_USED: AtomicU64 = AtomicU64::new(0);
static LOCK: Lock = Lock::new();

/// Takes the lock for the time of a `fork`.
pub fn before_fork() {
    LOCK.acquire();
}

/// Opens the lock that [`before_fork`] took; in the parent and in the child.
pub fn after_fork() {
    LOCK.release();
}

fn window(pc: u64) -> impl Iterator<Item = &'static Entry> {
    let first = (pc.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 50) as usize;
    (0..PROBES).filter_map(move |i| TABLE.get((first + i) % ENTRIES))
}

fn slice(text: u64) -> &'static [u8] {
    let (at, length) = ((text >> LENGTH_BITS) as usize, (text & ((1 << LENGTH_BITS) - 1)) as usize);
    let arena = ARENA.load(Acquire);
    if arena.is_null() || at + length > ARENA_BYTES {
        return &[];
    }
    // SAFETY: inside the arena, which is never unmapped; what an entry refers to is not written to any more.
    unsafe { core::slice::from_raw_parts(arena.add(at), length) }
}

/// The text for a return address, if it is known. Takes no lock.
pub fn known(pc: u64, epoch: u32) -> Option<&'static [u8]> {
    let entry = window(pc).find(|entry| entry.pc.load(Acquire) == pc)?;
    let text = entry.text.load(Acquire);
    // The entry may be given to another caller at this moment.
    (entry.epoch.load(Acquire) == epoch && entry.pc.load(Acquire) == pc).then(|| slice(text))
}

/// Finds out the text for a return address; `None` when its module is not known or there is no room. The busy mark must
/// be set; `interrupts` tells that it was set before, so that no lock may be waited for.
pub fn find_out(ledger: &Ledger, pc: u64, interrupts: bool) -> Option<&'static [u8]> {
    if !interrupts {
        runtime::refresh_modules(ledger);
    }
    let _guard = if interrupts { LOCK.try_lock()? } else { LOCK.lock() };
    let modules = if interrupts { MODULES.try_read(ledger)? } else { MODULES.read(ledger) };
    let epoch = ledger.header().epoch.load(Relaxed);
    let module = modules.find(pc)?;
    let same = window(pc).find(|entry| entry.pc.load(Relaxed) == pc);
    if let Some(entry) = same.filter(|entry| entry.record.load(Relaxed) == module.record()) {
        entry.epoch.store(epoch, Release);
        return Some(slice(entry.text.load(Relaxed)));
    }
    let text = compose(ledger, module, pc)?;
    let entry = same.or_else(|| window(pc).find(|entry| entry.pc.load(Relaxed) == 0)).or_else(|| window(pc).next())?;
    entry.pc.store(0, Release);
    entry.text.store(text, Release);
    entry.record.store(module.record(), Release);
    entry.epoch.store(epoch, Release);
    entry.pc.store(pc, Release);
    Some(slice(text))
}

/// The unused part of the arena as far as one text needs it, and where it begins. The lock must be held.
fn room() -> Option<(&'static mut [u8], u64)> {
    if ARENA.load(Relaxed).is_null() {
        ARENA.store(memory::map_zeroed(ARENA_BYTES).ok()?, Release);
    }
    let at = ARENA_USED.load(Relaxed);
    if at as usize + MOST_TEXT > ARENA_BYTES {
        return None;
    }
    // SAFETY: inside the arena; nothing refers to what is behind its used part, and the lock makes this the only slice.
    Some((unsafe { core::slice::from_raw_parts_mut(ARENA.load(Relaxed).add(at as usize), MOST_TEXT) }, at))
}

/// Makes a text. The lock must be held.
fn compose(ledger: &Ledger, module: &Mapped, pc: u64) -> Option<u64> {
    let (room, at) = room()?;
    let mut length = match ledger.module(module.record()) {
        Some(record) => ledger.copy_string(record.path.load(Relaxed), room.get_mut(..4096)?),
        None => 0,
    };
    // A line's parts are separated by spaces.
    for byte in room.get_mut(..length)?.iter_mut().filter(|byte| **byte <= b' ') {
        *byte = b'?';
    }
    let has_path = length > 0;
    let mut put = |bytes: &[u8]| {
        if let Some(to) = room.get_mut(length..length + bytes.len()) {
            to.copy_from_slice(bytes);
            length += bytes.len();
        }
    };
    if has_path {
        put(b":");
    }
    // SAFETY: the module is mapped: the caller's code is in it.
    if let Some((name, offset)) = unsafe { symbol(module, pc) }.filter(|(name, _)| name.len() <= MOST_NAME) {
        put(b"(");
        put(name);
        put(b"+");
        put(Hex::new(offset).digits());
        put(b")");
    }
    put(b"[");
    put(Hex::new(pc.wrapping_sub(module.start)).prefixed());
    put(b"]");
    ARENA_USED.store(at + length as u64, Relaxed);
    Some(at << LENGTH_BITS | length as u64)
}

/// A number in hexadecimal digits.
pub struct Hex {
    bytes: [u8; 18],
    first: usize,
}

impl Hex {
    /// Of a number.
    pub fn new(number: u64) -> Self {
        let mut bytes = [b'0'; 18];
        let mut first = bytes.len();
        let mut rest = number;
        loop {
            first -= 1;
            if let (Some(place), Some(digit)) = (bytes.get_mut(first), b"0123456789abcdef".get(rest as usize & 15)) {
                *place = *digit;
            }
            rest >>= 4;
            if rest == 0 {
                break;
            }
        }
        if let Some(x) = bytes.get_mut(first - 1) {
            *x = b'x';
        }
        Self { bytes, first }
    }

    /// The digits alone.
    pub fn digits(&self) -> &[u8] {
        self.bytes.get(self.first..).unwrap_or(&[])
    }

    /// `0x` and the digits.
    pub fn prefixed(&self) -> &[u8] {
        self.bytes.get(self.first - 2..).unwrap_or(&[])
    }
}

/// What the dynamic section of an object says of its symbols.
#[derive(Default)]
struct Tables {
    symbols: u64,
    strings: u64,
    strings_bytes: u64,
    gnu_hash: u64,
    hash: u64,
}

/// The dynamic symbol that `pc` belongs to, and the offset in it.
///
/// # Safety
/// The module is mapped, as the dynamic linker mapped it.
unsafe fn symbol(module: &Mapped, pc: u64) -> Option<(&'static [u8], u64)> {
    // SAFETY: the linker reads the same structures whenever it looks a symbol up, so they are mapped and consistent.
    unsafe {
        let tables = tables(module)?;
        let mut best: Option<&libc::Elf64_Sym> = None;
        let (first, end) = symbol_range(&tables)?;
        for number in first..end {
            let symbol = &*(tables.symbols as *const libc::Elf64_Sym).add(number as usize);
            let start = module.load_bias.wrapping_add(symbol.st_value);
            let covers = if symbol.st_shndx == 0 || symbol.st_size == 0 {
                pc == start
            } else {
                pc >= start && pc - start < symbol.st_size
            };
            const ABSOLUTE: u16 = 0xfff1;
            const TLS: u8 = 6;
            let counts = (symbol.st_shndx != 0 || symbol.st_value != 0)
                && symbol.st_shndx != ABSOLUTE
                && symbol.st_info & 15 != TLS
                && u64::from(symbol.st_name) < tables.strings_bytes;
            if covers && counts && best.is_none_or(|best| best.st_value < symbol.st_value) {
                best = Some(symbol);
            }
        }
        let best = best?;
        let name = CStr::from_ptr((tables.strings + u64::from(best.st_name)) as *const _).to_bytes();
        Some((name, pc.wrapping_sub(module.load_bias.wrapping_add(best.st_value))))
    }
}

/// The tables of a mapped object.
///
/// # Safety
/// As for [`symbol`].
unsafe fn tables(module: &Mapped) -> Option<Tables> {
    const DYNAMIC: u32 = 2;
    if !memory::is_mapped(module.start, 4096) {
        return None;
    }
    // SAFETY: mapped, as just asked; an object begins with its header and the program headers.
    unsafe {
        let header = &*(module.start as *const libc::Elf64_Ehdr);
        if header.e_ident[..4] != *b"\x7fELF" || header.e_phoff + u64::from(header.e_phnum) * 56 > 4096 {
            return None;
        }
        let headers = (module.start + header.e_phoff) as *const libc::Elf64_Phdr;
        let headers = core::slice::from_raw_parts(headers, usize::from(header.e_phnum));
        let dynamic = headers.iter().find(|header| header.p_type == DYNAMIC)?;
        let mut at = module.load_bias.wrapping_add(dynamic.p_vaddr) as *const [u64; 2];
        let mut out = Tables::default();
        // glibc adds the load bias in place, except in the vDSO.
        let address = |value: u64| if value < module.start { module.load_bias.wrapping_add(value) } else { value };
        while (*at)[0] != 0 {
            let [tag, value] = *at;
            match tag {
                4 => out.hash = address(value),
                5 => out.strings = address(value),
                6 => out.symbols = address(value),
                10 => out.strings_bytes = value,
                0x6fff_fef5 => out.gnu_hash = address(value),
                _ => {}
            }
            at = at.add(1);
        }
        (out.symbols != 0 && out.strings != 0).then_some(out)
    }
}

/// First number and end of the symbols that the hash table names.
///
/// # Safety
/// As for [`symbol`].
unsafe fn symbol_range(tables: &Tables) -> Option<(u32, u32)> {
    // SAFETY: the linker walks the same tables.
    unsafe {
        if tables.gnu_hash == 0 {
            let chains = *(tables.hash as *const u32).wrapping_add(1);
            return (tables.hash != 0).then_some((0, chains));
        }
        let [buckets, first, bloom_words, _] = *(tables.gnu_hash as *const [u32; 4]);
        let bucket = (tables.gnu_hash + 16 + u64::from(bloom_words) * 8) as *const u32;
        let chain = bucket.add(buckets as usize);
        let mut last = (0..buckets).map(|i| *bucket.add(i as usize)).max().filter(|&last| last >= first)?;
        while *chain.add((last - first) as usize) & 1 == 0 {
            last += 1;
        }
        Some((first, last + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_as_printf_writes_it() {
        for number in [0, 1, 15, 16, 0x7fff_1234_5678, u64::MAX] {
            assert_eq!(Hex::new(number).digits(), format!("{number:x}").as_bytes());
            assert_eq!(Hex::new(number).prefixed(), format!("{number:#x}").as_bytes());
        }
    }

    #[test]
    fn symbols_are_those_of_dladdr() {
        let mut checked = 0;
        let libc = libc::malloc as *const () as usize;
        for step in 0..2000 {
            let pc = libc - 200_000 + step * 211;
            // SAFETY: an empty structure that dladdr fills in.
            let (found, info) = unsafe {
                let mut info: libc::Dl_info = core::mem::zeroed();
                (libc::dladdr(pc as *const _, &raw mut info), info)
            };
            assert_ne!(found, 0);
            let start = info.dli_fbase as u64;
            let module = Mapped::for_tests(start, start + (4 << 20), start);
            // SAFETY: libc is mapped. Its load bias is its start: it begins at link-time address 0.
            let ours = unsafe { symbol(&module, pc as u64) };
            if info.dli_sname.is_null() {
                assert_eq!(ours, None);
                continue;
            }
            // SAFETY: dladdr gave a C string.
            let name = unsafe { CStr::from_ptr(info.dli_sname) }.to_bytes();
            assert_eq!(ours, Some((name, pc as u64 - info.dli_saddr as u64)));
            checked += 1;
        }
        assert!(checked > 200, "{checked}");
    }
}
