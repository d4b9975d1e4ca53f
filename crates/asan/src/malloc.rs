//! The malloc family. Each hook is naked: it passes its entry's stack and frame pointer, so that our own frames need no
//! unwinding.

use core::arch::naked_asm;
use core::ffi::{c_int, c_void};
use leakscope_asan_rt::heap::{self, AllocKind, Deletion, Request};
use leakscope_asan_rt::options::options;
use leakscope_asan_rt::report::heap as report;
use leakscope_asan_rt::unwind::Caller;
use leakscope_asan_rt::{init, sys};

macro_rules! hooks {
    ($($name:ident($count:tt) => $body:path;)*) => { $( hooks!(@ $name $count $body); )* };
    (@ $name:ident 1 $body:path) => { hooks!(@@ $name "mov rsi, rsp" "mov rdx, rbp" $body); };
    (@ $name:ident 2 $body:path) => { hooks!(@@ $name "mov rdx, rsp" "mov rcx, rbp" $body); };
    (@ $name:ident 3 $body:path) => { hooks!(@@ $name "mov rcx, rsp" "mov r8, rbp" $body); };
    (@@ $name:ident $first:literal $second:literal $body:path) => {
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name() {
            naked_asm!(".cfi_startproc", $first, $second, "jmp {}", ".cfi_endproc", sym $body)
        }
    };
}
pub(crate) use hooks;

hooks! {
    malloc(1) => malloc_body;
    free(1) => free_body;
    cfree(1) => free_body;
    calloc(2) => calloc_body;
    realloc(2) => realloc_body;
    reallocarray(3) => reallocarray_body;
    memalign(2) => memalign_body;
    __libc_memalign(2) => memalign_body;
    aligned_alloc(2) => aligned_alloc_body;
    posix_memalign(3) => posix_memalign_body;
    valloc(1) => valloc_body;
    pvalloc(1) => pvalloc_body;
    malloc_usable_size(1) => malloc_usable_size_body;
}

/// A request of the malloc family.
const fn request(bytes: usize, alignment: usize) -> Request {
    Request { bytes, alignment, kind: AllocKind::Malloc, zeroed: false, may_fail: true }
}

/// Fails for an alignment that is none.
#[cold]
fn refuse_alignment(report: impl FnOnce()) -> *mut u8 {
    let nothing = heap::refuse(&request(0, 0), report);
    // SAFETY: errno is the calling thread's.
    unsafe { *libc::__errno_location() = libc::EINVAL };
    nothing
}

macro_rules! caller {
    ($hook:ident, $rsp:ident, $rbp:ident) => {
        Caller { hook: $hook as *const () as usize, rsp: $rsp, rbp: $rbp }
    };
}

unsafe extern "C" fn malloc_body(bytes: usize, rsp: usize, rbp: usize) -> *mut u8 {
    init::ensure();
    heap::allocate(&caller!(malloc, rsp, rbp), request(bytes, 8))
}

unsafe extern "C" fn free_body(address: usize, rsp: usize, rbp: usize) {
    heap::release(&caller!(free, rsp, rbp), address, AllocKind::Malloc, Deletion::default());
}

unsafe extern "C" fn calloc_body(count: usize, bytes: usize, rsp: usize, rbp: usize) -> *mut u8 {
    init::ensure();
    let caller = caller!(calloc, rsp, rbp);
    match count.checked_mul(bytes) {
        Some(bytes) => heap::allocate(&caller, Request { zeroed: true, ..request(bytes, 8) }),
        None => heap::refuse(&request(0, 0), || report::calloc_overflow(&caller, count, bytes)),
    }
}

unsafe extern "C" fn realloc_body(address: usize, bytes: usize, rsp: usize, rbp: usize) -> *mut u8 {
    init::ensure();
    heap::reallocate(&caller!(realloc, rsp, rbp), address, bytes)
}

unsafe extern "C" fn reallocarray_body(address: usize, count: usize, bytes: usize, rsp: usize, rbp: usize) -> *mut u8 {
    init::ensure();
    let caller = caller!(reallocarray, rsp, rbp);
    match count.checked_mul(bytes) {
        Some(bytes) => heap::reallocate(&caller, address, bytes),
        None => heap::refuse(&request(0, 0), || report::reallocarray_overflow(&caller, count, bytes)),
    }
}

unsafe extern "C" fn memalign_body(alignment: usize, bytes: usize, rsp: usize, rbp: usize) -> *mut u8 {
    init::ensure();
    let caller = caller!(memalign, rsp, rbp);
    if !alignment.is_power_of_two() {
        return refuse_alignment(|| report::invalid_alignment(&caller, alignment));
    }
    heap::allocate(&caller, request(bytes, alignment))
}

unsafe extern "C" fn aligned_alloc_body(alignment: usize, bytes: usize, rsp: usize, rbp: usize) -> *mut u8 {
    init::ensure();
    let caller = caller!(aligned_alloc, rsp, rbp);
    if !alignment.is_power_of_two() || bytes & (alignment - 1) != 0 {
        return refuse_alignment(|| report::invalid_aligned_alloc(&caller, alignment, bytes));
    }
    heap::allocate(&caller, request(bytes, alignment))
}

unsafe extern "C" fn posix_memalign_body(
    out: *mut *mut c_void,
    alignment: usize,
    bytes: usize,
    rsp: usize,
    rbp: usize,
) -> c_int {
    init::ensure();
    let caller = caller!(posix_memalign, rsp, rbp);
    if !alignment.is_power_of_two() || !alignment.is_multiple_of(8) {
        if !options().allocator_may_return_null {
            report::invalid_posix_memalign(&caller, alignment);
        }
        return libc::EINVAL;
    }
    let block = heap::allocate(&caller, request(bytes, alignment));
    if block.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the program's own pointer.
    unsafe { *out = block.cast() };
    0
}

unsafe extern "C" fn valloc_body(bytes: usize, rsp: usize, rbp: usize) -> *mut u8 {
    init::ensure();
    heap::allocate(&caller!(valloc, rsp, rbp), request(bytes, sys::PAGE))
}

unsafe extern "C" fn pvalloc_body(bytes: usize, rsp: usize, rbp: usize) -> *mut u8 {
    init::ensure();
    let caller = caller!(pvalloc, rsp, rbp);
    match bytes.max(1).checked_next_multiple_of(sys::PAGE) {
        Some(rounded) => heap::allocate(&caller, request(rounded, sys::PAGE)),
        None => heap::refuse(&request(0, 0), || report::pvalloc_overflow(&caller, bytes)),
    }
}

unsafe extern "C" fn malloc_usable_size_body(address: usize, rsp: usize, rbp: usize) -> usize {
    if address == 0 {
        return 0;
    }
    if let Some(bytes) = heap::live_bytes(address) {
        return bytes;
    }
    if options().check_malloc_usable_size {
        let caller = caller!(malloc_usable_size, rsp, rbp);
        report::not_owned(&caller, address, "malloc_usable_size", "bad-malloc_usable_size");
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mallinfo(out: *mut [u8; 40]) -> *mut [u8; 40] {
    // SAFETY: the ABI returns this structure through a pointer.
    unsafe { *out = [0; 40] };
    out
}

#[unsafe(no_mangle)]
extern "C" fn mallopt(_name: c_int, _value: c_int) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn malloc_stats() {
    leakscope_asan_rt::statistics::print();
}
