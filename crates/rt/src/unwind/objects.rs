//! From a pc to the object that holds it and to that object's `.eh_frame_hdr`.
//!
//! `_dl_find_object` (glibc 2.35) is lock-free and safe in signal handlers. `dl_iterate_phdr`, for what is older, takes
//! the loader's lock: it may be re-entered by the thread that is in `dlopen`, and makes other threads wait for it.
//!
//! Source: glibc `dlfcn/dlfcn.h` (`struct dl_find_object`), `elf/link.h`.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

/// An object that is mapped, and where its unwind information starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Lowest address of the object, or of the part of it around the pc if there are gaps between its segments.
    pub start: u64,
    /// One past its highest address.
    pub end: u64,
    /// Address of `.eh_frame_hdr`, which may lie in another part.
    pub eh_frame_hdr: u64,
}

impl ObjectInfo {
    /// The address where the kernel or the dynamic linker enters the object; `None` when its header is not mapped. For
    /// objects as [`ObjectFinder::find`] gives them, while they are mapped.
    pub(super) fn entry(&self) -> Option<u64> {
        if !self.start.is_multiple_of(4096) || self.start == 0 || self.end.wrapping_sub(self.start) < 4096 {
            return None;
        }
        let header = self.start as *const libc::Elf64_Ehdr;
        // SAFETY: the loader has mapped the object's first page at `start`; whether it begins with a header is looked at.
        let (ident, kind, entry) =
            unsafe { ((*header).e_ident, (*header).e_type, core::ptr::addr_of!((*header).e_entry).read()) };
        match kind {
            _ if ident.first_chunk() != Some(b"\x7fELF") || entry == 0 => None,
            libc::ET_DYN => Some(self.start.wrapping_add(entry)),
            _ => Some(entry),
        }
    }
}

#[repr(C)]
struct DlFindObject {
    flags: u64,
    map_start: u64,
    map_end: u64,
    link_map: *const c_void,
    eh_frame: u64,
    reserved: [u64; 7],
}

type DlFindObjectFn = unsafe extern "C" fn(*const c_void, *mut DlFindObject) -> c_int;
type PhdrCallback = unsafe extern "C" fn(*mut libc::dl_phdr_info, libc::size_t, *mut c_void) -> c_int;
type DlIteratePhdrFn = unsafe extern "C" fn(Option<PhdrCallback>, *mut c_void) -> c_int;

/// The loader's functions, found by the caller (`dlsym` may allocate, so it is not called here).
#[derive(Clone, Copy, Debug)]
pub struct ObjectFinder {
    dl_find_object: *mut c_void,
    dl_iterate_phdr: *mut c_void,
}

impl ObjectFinder {
    /// Takes the addresses of `_dl_find_object` and `dl_iterate_phdr`; null for what does not exist.
    ///
    /// # Safety
    /// Each is null or the address of the loader's function of that name.
    #[must_use]
    pub const unsafe fn new(dl_find_object: *mut c_void, dl_iterate_phdr: *mut c_void) -> Self {
        Self { dl_find_object, dl_iterate_phdr }
    }

    /// The object around `pc`, if the loader knows one with unwind information.
    #[must_use]
    pub fn find(&self, pc: u64) -> Option<ObjectInfo> {
        // Neither the first page nor kernel addresses hold code; some loaders do arithmetic on pc.
        if !(4096..1 << 47).contains(&pc) {
            return None;
        }
        if !self.dl_find_object.is_null() {
            // SAFETY: `new`'s contract: it is `_dl_find_object`.
            unsafe { find_by_loader(self.dl_find_object, pc) }
        } else if !self.dl_iterate_phdr.is_null() {
            // SAFETY: `new`'s contract: it is `dl_iterate_phdr`.
            unsafe { find_by_phdr(self.dl_iterate_phdr, pc) }
        } else {
            None
        }
    }
}

unsafe fn find_by_loader(function: *mut c_void, pc: u64) -> Option<ObjectInfo> {
    // SAFETY: the caller passes the address of `_dl_find_object`.
    let find: DlFindObjectFn = unsafe { core::mem::transmute(function) };
    let mut out =
        DlFindObject { flags: 0, map_start: 0, map_end: 0, link_map: core::ptr::null(), eh_frame: 0, reserved: [0; 7] };
    // SAFETY: `out` has glibc's layout and size; any pc may be asked for.
    let status = unsafe { find(pc as *const c_void, &raw mut out) };
    (status == 0 && out.eh_frame != 0).then_some(ObjectInfo {
        start: out.map_start,
        end: out.map_end,
        eh_frame_hdr: out.eh_frame,
    })
}

struct PhdrSearch {
    pc: u64,
    found: Option<ObjectInfo>,
}

unsafe fn find_by_phdr(function: *mut c_void, pc: u64) -> Option<ObjectInfo> {
    // SAFETY: the caller passes the address of `dl_iterate_phdr`.
    let iterate: DlIteratePhdrFn = unsafe { core::mem::transmute(function) };
    let mut search = PhdrSearch { pc, found: None };
    // SAFETY: the callback gets `search` back and nothing else does meanwhile.
    unsafe { iterate(Some(visit_object), (&raw mut search).cast()) };
    search.found
}

unsafe extern "C" fn visit_object(info: *mut libc::dl_phdr_info, _size: libc::size_t, data: *mut c_void) -> c_int {
    // SAFETY: the loader passes a valid `info`, and `data` is the `PhdrSearch` of `find_by_phdr`.
    let (info, search) = unsafe { (&*info, &mut *data.cast::<PhdrSearch>()) };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: the loader describes its own array of program headers.
    let headers = unsafe { core::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let (mut low, mut high, mut holds_pc, mut hdr) = (u64::MAX, 0, false, 0);
    for header in headers {
        let start = info.dlpi_addr.wrapping_add(header.p_vaddr);
        match header.p_type {
            libc::PT_LOAD => {
                let end = start.wrapping_add(header.p_memsz);
                low = low.min(start);
                high = high.max(end);
                holds_pc |= (start..end).contains(&search.pc);
            }
            libc::PT_GNU_EH_FRAME => hdr = start,
            _ => {}
        }
    }
    if !holds_pc {
        return 0;
    }
    search.found = (hdr != 0).then_some(ObjectInfo { start: low, end: high, eh_frame_hdr: hdr });
    1
}

/// An [`ObjectFinder`] that is set once, later than the static that holds it.
pub(super) struct FinderCell {
    dl_find_object: AtomicPtr<c_void>,
    dl_iterate_phdr: AtomicPtr<c_void>,
}

impl FinderCell {
    pub(super) const fn new() -> Self {
        Self {
            dl_find_object: AtomicPtr::new(core::ptr::null_mut()),
            dl_iterate_phdr: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    pub(super) fn set(&self, finder: ObjectFinder) {
        self.dl_iterate_phdr.store(finder.dl_iterate_phdr, Ordering::Release);
        self.dl_find_object.store(finder.dl_find_object, Ordering::Release);
    }

    pub(super) fn get(&self) -> ObjectFinder {
        ObjectFinder {
            dl_find_object: self.dl_find_object.load(Ordering::Acquire),
            dl_iterate_phdr: self.dl_iterate_phdr.load(Ordering::Acquire),
        }
    }
}
