//! Global variables: their redzones, two definitions of one name, and initialisers that run too early.
//!
//! Source: the ABI of `__asan_register_globals`: an array of descriptions, one for each variable of an object.

use crate::options::options;
use crate::shadow_map::{self, why};
use crate::unwind::Caller;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};
use leakscope_rt::memory::{Lock, LockGuard};

/// What the compiler says of a variable.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Global {
    /// Its address.
    pub start: usize,
    /// Its bytes.
    pub bytes: usize,
    /// Its bytes with the redzone behind it.
    pub bytes_with_redzone: usize,
    /// Its name, a C string.
    pub name: *const c_char,
    /// Its source file or object, a C string.
    pub module: *const c_char,
    /// Whether its initialiser runs at run time.
    pub is_dynamic: usize,
    /// File, line and column, when the compiler gives them.
    pub location: *const Location,
    /// A byte that all definitions of the variable share; 0: none, all ones: not to be checked.
    pub odr_indicator: usize,
}

/// Where a variable is defined.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Location {
    file: *const c_char,
    line: i32,
    column: i32,
}

/// A registered variable.
#[derive(Clone, Copy)]
pub struct Registered {
    /// What the compiler said.
    pub global: Global,
    /// The stack of the registration.
    pub site: u32,
    /// The place of the compiler's description: identity of the variable.
    pub at: usize,
    initialised: bool,
}

impl Global {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        text(self.name)
    }

    /// Its module's name.
    #[must_use]
    pub fn module(&self) -> &'static str {
        text(self.module)
    }

    /// File, line and column of the definition, if the compiler told.
    #[must_use]
    pub fn location(&self) -> Option<(&'static str, i32, i32)> {
        // SAFETY: null, or the compiler's constant.
        let location = unsafe { self.location.as_ref() }?;
        (!location.file.is_null()).then(|| (text(location.file), location.line, location.column))
    }
}

fn text(at: *const c_char) -> &'static str {
    if at.is_null() {
        return "";
    }
    // SAFETY: constants of a loaded object.
    unsafe { CStr::from_ptr(at) }.to_str().unwrap_or("")
}

struct List {
    lock: Lock,
    all: UnsafeCell<Vec<Registered>>,
}
// SAFETY: the vectors are only touched with the lock held.
unsafe impl Sync for List {}

static LIST: List = List { lock: Lock::new(), all: UnsafeCell::new(Vec::new()) };

impl List {
    #[allow(clippy::mut_from_ref, reason = "the guard is the proof that nobody else has it")]
    fn all<'a>(&'a self, _held: &'a LockGuard<'_>) -> &'a mut Vec<Registered> {
        // SAFETY: the lock is held.
        unsafe { &mut *self.all.get() }
    }
}

fn poison_redzone(global: &Global) {
    let whole = global.bytes.next_multiple_of(8);
    // SAFETY: the compiler laid out the variable with this redzone.
    unsafe {
        shadow_map::fill(global.start + whole, global.bytes_with_redzone - whole, why::GLOBAL_REDZONE);
        if global.bytes & 7 != 0 && options().poison_partial {
            *(shadow_map::shadow_of(global.start + global.bytes) as *mut u8) = (global.bytes & 7) as u8;
        }
    }
}

/// Two definitions of one variable.
pub type Clash = (Registered, Registered);

/// Registers the variables of an object. Gives the pairs that violate the one-definition rule.
///
/// # Safety
/// `first` points at `count` descriptions that stay until they are unregistered.
pub unsafe fn register(caller: &Caller, first: *const Global, count: usize) -> Vec<Clash> {
    let mut clashes = Vec::new();
    if options().report_globals == 0 {
        return clashes;
    }
    let site = caller.stack();
    let held = LIST.lock.lock();
    let list = LIST.all(&held);
    for number in 0..count {
        // SAFETY: the caller's.
        let global = unsafe { *first.add(number) };
        let registered = Registered { global, site, at: first.wrapping_add(number) as usize, initialised: false };
        if options().report_globals >= 2 {
            crate::report::globals::describe(&registered, "Added");
        }
        let is_aligned = global.start.is_multiple_of(8) && global.bytes_with_redzone.is_multiple_of(8);
        if !is_aligned {
            // Another object's definition took the place of this one: nothing to poison, but to tell.
            crate::report::globals::misaligned(&registered);
            let other = holder(&registered);
            if options().detect_odr_violation > 0 && differs(&other, &registered) {
                clashes.push((other, registered));
            }
        } else if options().detect_odr_violation > 0
            && let Some(other) = clash_of(list, &registered)
        {
            clashes.push((other, registered));
        }
        if options().poison_heap && is_aligned {
            poison_redzone(&global);
        }
        list.push(registered);
    }
    clashes
}

/// The variable that took the place of a definition, which nobody registered: as the tables of its object have it.
fn holder(new: &Registered) -> Registered {
    let start = new.global.start;
    let bytes = crate::symbolize::variable_at(start)
        .filter(|variable| variable.start == start && variable.bytes != 0)
        .map_or(new.global.bytes, |variable| variable.bytes);
    let global = Global { bytes, location: core::ptr::null(), ..new.global };
    Registered { global, site: 0, at: start, initialised: false }
}

/// Whether two definitions of a variable are to be told.
fn differs(old: &Registered, new: &Registered) -> bool {
    options().detect_odr_violation >= 2 || old.global.bytes != new.global.bytes
}

fn clash_of(list: &[Registered], new: &Registered) -> Option<Registered> {
    const NOT_CHECKED: usize = usize::MAX;
    const REGISTERED: u8 = 1;
    let indicator = new.global.odr_indicator;
    if indicator == NOT_CHECKED {
        return None;
    }
    if indicator == 0 {
        // Without an indicator: a redzone where the new variable lies means that it lies over another.
        let is_taken = shadow_map::first_poisoned(new.global.start, new.global.bytes_with_redzone).is_some();
        return is_taken
            .then(|| list.iter().find(|old| old.global.start == new.global.start && differs(old, new)).copied())
            .flatten();
    }
    // SAFETY: the compiler's byte.
    let flag = unsafe { &mut *(indicator as *mut u8) };
    if *flag != REGISTERED {
        *flag = REGISTERED;
        return None;
    }
    list.iter().find(|old| old.global.odr_indicator == indicator && differs(old, new)).copied()
}

/// Forgets the variables of an object that is being unloaded.
///
/// # Safety
/// As [`register`].
pub unsafe fn unregister(first: *const Global, count: usize) {
    if options().report_globals == 0 {
        return;
    }
    let held = LIST.lock.lock();
    let list = LIST.all(&held);
    for number in 0..count {
        let at = first.wrapping_add(number);
        // SAFETY: the caller's.
        let global = unsafe { *at };
        if global.odr_indicator != 0 && global.odr_indicator != usize::MAX {
            // SAFETY: the compiler's byte.
            unsafe { *(global.odr_indicator as *mut u8) = 0 };
        }
        if global.start.is_multiple_of(8) && global.bytes_with_redzone.is_multiple_of(8) {
            // SAFETY: the variable is going away.
            unsafe { shadow_map::fill(global.start, global.bytes_with_redzone, 0) };
        }
        if let Some(place) = list.iter().rposition(|registered| registered.at == at as usize) {
            let registered = list.swap_remove(place);
            if options().report_globals >= 2 {
                crate::report::globals::describe(&registered, "Removed");
            }
        }
    }
}

/// Registers the variables of an object once, however often it asks: `flag` is the object's own word.
///
/// # Safety
/// `flag` is the object's, `start..stop` its descriptions.
pub unsafe fn register_image(caller: &Caller, flag: *mut usize, start: usize, stop: usize) -> Vec<Clash> {
    // SAFETY: the caller's.
    unsafe {
        if *flag != 0 {
            return Vec::new();
        }
        *flag = 1;
        register(caller, start as *const Global, (stop - start) / size_of::<Global>())
    }
}

/// The opposite of [`register_image`].
///
/// # Safety
/// As there.
pub unsafe fn unregister_image(flag: *mut usize, start: usize, stop: usize) {
    // SAFETY: the caller's.
    unsafe {
        if *flag == 0 {
            return;
        }
        *flag = 0;
        unregister(start as *const Global, (stop - start) / size_of::<Global>());
    }
}

/// An object's dynamic initialisers begin: variables of other objects that have not been initialised are out of
/// bounds.
pub fn before_initialisers(module: *const c_char) {
    if !options().check_initialization_order || !options().poison_heap {
        return;
    }
    let held = LIST.lock.lock();
    for registered in LIST.all(&held) {
        if registered.global.is_dynamic == 0 {
            continue;
        }
        let is_own = core::ptr::eq(registered.global.module, module) || registered.global.module() == text(module);
        if is_own {
            registered.initialised = true;
        } else if !registered.initialised || options().strict_init_order {
            // SAFETY: a registered variable.
            unsafe {
                shadow_map::fill(registered.global.start, registered.global.bytes_with_redzone, why::INIT_ORDER);
            }
        }
    }
}

/// They are done.
pub fn after_initialisers() {
    if !options().check_initialization_order || !options().poison_heap {
        return;
    }
    let held = LIST.lock.lock();
    for registered in LIST.all(&held) {
        if registered.global.is_dynamic != 0 && (!registered.initialised || options().strict_init_order) {
            // SAFETY: a registered variable.
            unsafe {
                shadow_map::fill(registered.global.start, registered.global.bytes.next_multiple_of(8), 0);
                poison_redzone(&registered.global);
            }
        }
    }
}

/// The time of initialisation is over: every variable may be used.
pub fn stop_init_order_checking() {
    if !options().check_initialization_order || !options().poison_heap {
        return;
    }
    let held = LIST.lock.lock();
    for registered in LIST.all(&held).iter().filter(|registered| registered.global.is_dynamic != 0) {
        // SAFETY: a registered variable.
        unsafe { shadow_map::fill(registered.global.start, registered.global.bytes.next_multiple_of(8), 0) };
        poison_redzone(&registered.global);
    }
    crate::options::change(|options| options.check_initialization_order = false);
}

/// The variables near an address, redzones included, the one that was registered last first: for reports.
#[must_use]
pub fn near(address: usize) -> Vec<Registered> {
    /// From here on a variable is another matter.
    const FAR: usize = 64;
    let held = LIST.lock.lock();
    let all = LIST.all(&held);
    all.iter()
        .rev()
        .filter(|registered| {
            let global = &registered.global;
            address + FAR > global.start && address < global.start + global.bytes_with_redzone
        })
        .copied()
        .collect()
}

/// Opens the lock in a forked child, whoever held it.
pub fn after_fork_in_child() {
    if !LIST.lock.is_open() {
        LIST.lock.release();
    }
}

/// A thread begins before main: with strict checking only main's order is judged.
pub fn stop_init_order_checking_if_strict() {
    if options().strict_init_order {
        stop_init_order_checking();
    }
}
