//! The objects in this process: which of them holds an address, by the loader's list. Reports and leak checks ask.

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::{CStr, c_int, c_void};

/// A loaded object.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its path; the program's own is resolved.
    pub path: String,
    /// What is added to addresses as linked.
    pub bias: usize,
    /// First and one past the last address of each segment, and whether it may be executed.
    pub segments: Vec<(usize, usize, bool, bool)>,
    /// GNU build id.
    pub build_id: Vec<u8>,
    /// Bounds of the initial image of thread-local storage, if there is one.
    pub dynamic: usize,
}

impl Module {
    /// Whether an address lies in one of its segments.
    #[must_use]
    pub fn contains(&self, address: usize) -> bool {
        self.segments.iter().any(|&(start, end, ..)| (start..end).contains(&address))
    }
}

/// The program's path.
#[must_use]
pub fn executable() -> String {
    let mut buffer = [0u8; 4096];
    let length = leakscope_rt::modules::read_link(c"/proc/self/exe", &mut buffer);
    String::from_utf8_lossy(buffer.get(..length).unwrap_or(&[])).into_owned()
}

/// All objects, the program first.
#[must_use]
pub fn all() -> Vec<Module> {
    let mut list: Vec<Module> = Vec::new();
    // SAFETY: the callback gets the list back, and nobody else has it.
    unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut list).cast()) };
    list
}

unsafe extern "C" fn collect(info: *mut libc::dl_phdr_info, _: usize, out: *mut c_void) -> c_int {
    // SAFETY: the loader gives a valid structure, `all` its list.
    let (info, list) = unsafe { (&*info, &mut *out.cast::<Vec<Module>>()) };
    // SAFETY: the loader's name is a C string or null.
    let name = if info.dlpi_name.is_null() { c"" } else { unsafe { CStr::from_ptr(info.dlpi_name) } };
    let path = if list.is_empty() { executable() } else { String::from_utf8_lossy(name.to_bytes()).into_owned() };
    let mut module =
        Module { path, bias: info.dlpi_addr as usize, segments: Vec::new(), build_id: Vec::new(), dynamic: 0 };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: the loader's program headers are mapped as long as the object is.
    let headers = unsafe { core::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    for header in headers {
        let start = module.bias.wrapping_add(header.p_vaddr as usize);
        match header.p_type {
            libc::PT_LOAD => {
                let (executable, writable) = (header.p_flags & libc::PF_X != 0, header.p_flags & libc::PF_W != 0);
                module.segments.push((start, start.wrapping_add(header.p_memsz as usize), executable, writable));
            }
            libc::PT_NOTE => {
                // SAFETY: notes of a mapped object.
                let notes = unsafe { core::slice::from_raw_parts(start as *const u8, header.p_memsz as usize) };
                if let Some(id) = crate::symbolize::elf::build_id(notes) {
                    module.build_id = id.to_vec();
                }
            }
            libc::PT_DYNAMIC => module.dynamic = start,
            _ => {}
        }
    }
    list.push(module);
    0
}

/// The object that holds an address.
#[must_use]
pub fn find(address: usize) -> Option<Module> {
    all().into_iter().find(|module| module.contains(address))
}

unsafe extern "C" {
    static __ehdr_start: u8;
    static _etext: u8;
}

/// Whether an address lies in this library's own code.
#[inline(always)]
#[must_use]
pub fn is_own_code(pc: usize) -> bool {
    (&raw const __ehdr_start as usize..&raw const _etext as usize).contains(&pc)
}
