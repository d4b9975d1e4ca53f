//! libc's own functions behind our hooks, and copies of memory that no hook sees.

use core::ffi::{CStr, c_void};
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::{Acquire, Release};

/// The function of a name that comes after ours: dlsym gives the newest version of it, as a program that was linked
/// without us would get.
#[repr(C)]
pub struct Original {
    address: AtomicUsize,
    name: &'static CStr,
}

impl Original {
    /// A function that has not been looked for yet.
    #[must_use]
    pub const fn new(name: &'static CStr) -> Self {
        Self { address: AtomicUsize::new(0), name }
    }

    /// Its address; 0 when there is none.
    #[inline(always)]
    pub fn get(&self) -> usize {
        match self.address.load(Acquire) {
            0 => self.find(),
            address => address,
        }
    }

    /// Its address if it has been looked for.
    #[inline(always)]
    pub fn known(&self) -> usize {
        self.address.load(Acquire)
    }

    #[cold]
    #[inline(never)]
    fn find(&self) -> usize {
        // SAFETY: the name is a C string.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) } as usize;
        self.address.store(found, Release);
        found
    }
}

/// Looks for a function of the program or of any library.
#[must_use]
pub fn lookup(name: &CStr) -> usize {
    // SAFETY: the name is a C string.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) as usize }
}

static MEMMOVE: Original = Original::new(c"memmove");
static MEMSET: Original = Original::new(c"memset");

/// memmove(3).
pub type Memmove = unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> *mut c_void;
/// memset(3).
pub type Memset = unsafe extern "C" fn(*mut c_void, i32, usize) -> *mut c_void;

/// Finds what copies need; called once at the start.
pub fn find_copies() {
    MEMMOVE.get();
    MEMSET.get();
}

/// libc's memmove once it is known, which is after the shadow has been mapped.
#[inline(always)]
#[must_use]
pub fn memmove_of_libc() -> Option<Memmove> {
    let function = MEMMOVE.known();
    // SAFETY: dlsym's address for this name.
    (function != 0).then(|| unsafe { core::mem::transmute::<usize, Memmove>(function) })
}

/// As [`memmove_of_libc`], memset.
#[inline(always)]
#[must_use]
pub fn memset_of_libc() -> Option<Memset> {
    let function = MEMSET.known();
    // SAFETY: dlsym's address for this name.
    (function != 0).then(|| unsafe { core::mem::transmute::<usize, Memset>(function) })
}

/// memmove(3) by libc's own, or by a loop until that is known. Never a call of our hook.
///
/// # Safety
/// Both ranges are accessible.
#[inline(always)]
pub unsafe fn copy_bytes(to: usize, from: usize, count: usize) {
    let function = MEMMOVE.known();
    // SAFETY: the caller vouches for the ranges; the address is memmove's.
    unsafe {
        if function == 0 {
            copy_slowly(to, from, count);
        } else {
            let function: Memmove = core::mem::transmute(function);
            function(to as *mut c_void, from as *const c_void, count);
        }
    }
}

/// memset(3) by libc's own, or by a loop until that is known.
///
/// # Safety
/// The range is accessible.
#[inline(always)]
pub unsafe fn set_bytes(to: usize, value: u8, count: usize) {
    let function = MEMSET.known();
    // SAFETY: the caller vouches for the range; the address is memset's.
    unsafe {
        if function == 0 {
            crate::shadow_map::fill_bytes(to, count, value);
        } else {
            let function: Memset = core::mem::transmute(function);
            function(to as *mut c_void, i32::from(value), count);
        }
    }
}

#[cold]
unsafe fn copy_slowly(to: usize, from: usize, count: usize) {
    // SAFETY: the caller vouches for the ranges. Volatile, so that no compiler makes a call of it.
    unsafe {
        if to <= from || to >= from + count {
            for i in 0..count {
                core::ptr::write_volatile((to + i) as *mut u8, core::ptr::read_volatile((from + i) as *const u8));
            }
        } else {
            for i in (0..count).rev() {
                core::ptr::write_volatile((to + i) as *mut u8, core::ptr::read_volatile((from + i) as *const u8));
            }
        }
    }
}
