//! Functions that the target wraps or replaces by names of its own: `_vgw00000ZU_libc.so.6_malloc`, as `valgrind.h`'s
//! `I_WRAP_SONAME_FNNAME_ZU` makes them.
//!
//! A call of a wrapped function goes to the wrapper, which finds the function's address with `VALGRIND_GET_ORIG_FN` and
//! calls it past its own wrapper. Source: `valgrind.h`, `pub_tool_redir.h` (BSD-licensed; the encoding of names).

use std::ffi::CString;

use leakscope_translate::{Action, Engine, Gpr};

use crate::elf_symbols::SymbolFile;
use crate::engine::{Memcheck, Replaced, shadow};
use crate::functions::{Function, matches};
use crate::modules::Module;
use crate::probe;

/// Cookies of hooks that lead to wrappers begin here.
const WRAPPERS: u64 = 1 << 40;

/// A wrapper: whom it is for, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wrapper {
    soname: Vec<u8>,
    function: Vec<u8>,
    address: u64,
    /// It may ask for the function that it stands for.
    is_wrapper: bool,
}

/// A function that a wrapper stands for.
#[derive(Clone, Copy, Debug)]
struct Wrapped {
    address: u64,
    to: u64,
    is_wrapper: bool,
}

/// All wrappers.
#[derive(Clone, Debug, Default)]
pub struct Wrappers {
    list: Vec<Wrapper>,
    /// Modules were searched with so many of them.
    known: usize,
    wrapped: Vec<Wrapped>,
}

/// Takes the encoding of a name back: `Zu` is `_`, `Za` is `*`.
fn decoded(name: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name.iter();
    while let Some(&byte) = rest.next() {
        if byte != b'Z' {
            out.push(byte);
            continue;
        }
        out.push(match rest.next()? {
            b'a' => b'*',
            b'c' => b':',
            b'd' => b'.',
            b'h' => b'-',
            b'p' => b'+',
            b's' => b' ',
            b'u' => b'_',
            b'A' => b'@',
            b'D' => b'$',
            b'L' => b'(',
            b'P' => b'%',
            b'R' => b')',
            b'S' => b'/',
            b'Z' => b'Z',
            _ => return None,
        });
    }
    Some(out)
}

/// `_vgw` or `_vgr`, five digits, `ZU` or `ZZ`, the object's name, the function's.
fn wrapper(name: &[u8], address: u64) -> Option<Wrapper> {
    let rest = name.strip_prefix(b"_vg")?;
    let (kind, rest) = rest.split_first()?;
    let is_wrapper = match kind {
        b'w' => true,
        b'r' => false,
        _ => return None,
    };
    let (digits, rest) = rest.split_at_checked(5)?;
    let (how, rest) = rest.split_at_checked(3)?;
    let between = rest.iter().position(|&byte| byte == b'_')?;
    let (soname, function) = (&rest[..between], &rest[between + 1..]);
    let is_known = digits.iter().all(u8::is_ascii_digit) && matches!(how, b"ZU_" | b"ZZ_");
    let function = if how == b"ZZ_" { decoded(function)? } else { function.to_vec() };
    is_known.then_some(Wrapper { soname: decoded(soname)?, function, address, is_wrapper })
}

impl Wrappers {
    /// Adds a function with such a name.
    pub fn add(&mut self, name: &[u8], address: u64) {
        let new = wrapper(name, address).filter(|new| !self.list.contains(new));
        self.list.extend(new);
    }
}

impl Memcheck {
    /// A module is there, and its wrappers were added: functions of all modules are wrapped with those, and its own
    /// functions with all wrappers.
    pub fn wrap_module(&mut self, engine: &mut Engine, module: &Module) {
        let first_new = std::mem::replace(&mut self.wrappers.known, self.wrappers.list.len());
        if self.wrappers.list.is_empty() {
            return;
        }
        let is_own = |other: &Module| other.number == module.number;
        let others = if self.wrappers.list.len() > first_new { self.modules.mapped() } else { Vec::new() };
        for module in others.iter().filter(|other| !is_own(other)).chain([module]) {
            let first = if is_own(module) { 0 } else { first_new };
            if let Some(file) = symbols(module) {
                self.wrap_functions(engine, module, &file, first);
            }
        }
    }

    /// Wraps functions of a module by the wrappers from number `first` on.
    fn wrap_functions(&mut self, engine: &mut Engine, module: &Module, file: &SymbolFile, first: usize) {
        let soname = file.facts().soname;
        let soname: &[u8] = if soname.is_empty() { b"NONE" } else { &soname };
        let wanted: Vec<&Wrapper> =
            self.wrappers.list[first..].iter().filter(|wrapper| matches(&wrapper.soname, soname)).collect();
        if wanted.is_empty() {
            return;
        }
        let mut found: Vec<Wrapped> = Vec::new();
        file.functions(|symbol| {
            let address = symbol.value.wrapping_add(module.bias);
            let wrapper = wanted.iter().find(|wrapper| matches(&wrapper.function, symbol.name));
            if let Some(wrapper) = wrapper.filter(|wrapper| wrapper.address != address)
                && !symbol.is_indirect
                && !found.iter().any(|known| known.address == address)
            {
                found.push(Wrapped { address, to: wrapper.address, is_wrapper: wrapper.is_wrapper });
            }
        });
        for wrapped in found {
            if !self.wrappers.wrapped.iter().any(|known| known.address == wrapped.address) {
                engine.hook(wrapped.address, WRAPPERS + self.wrappers.wrapped.len() as u64);
                self.wrappers.wrapped.push(wrapped);
            }
        }
    }

    /// Memory was unmapped: what was wrapped in it, and wrappers in it, are gone.
    pub fn unwrap_range(&mut self, engine: &mut Engine, start: u64, end: u64) {
        let is_gone = |address: u64| (start..end).contains(&address);
        self.wrappers.list.retain(|wrapper| !is_gone(wrapper.address));
        self.wrappers.known = self.wrappers.list.len();
        for wrapped in &mut self.wrappers.wrapped {
            if is_gone(wrapped.address) || is_gone(wrapped.to) {
                engine.unhook(wrapped.address);
                // Its number stays taken; no address is 0.
                wrapped.address = 0;
            }
        }
    }

    /// A wrapped function is called: its wrapper runs.
    pub fn call_wrapper(&mut self, engine: &mut Engine, cookie: u64) {
        let Some(&wrapped) = self.wrappers.wrapped.get(cookie.wrapping_sub(WRAPPERS) as usize) else { return };
        if wrapped.is_wrapper {
            self.threads.current().wrapped = wrapped.address;
        }
        engine.guest_mut().rip = wrapped.to;
    }

    /// `VALGRIND_GET_ORIG_FN`: the function whose wrapper runs.
    pub fn wrapped_function(&mut self, engine: &mut Engine) {
        let address = self.threads.current().wrapped;
        engine.guest_mut().set_gpr(Gpr::Rax, address);
    }

    /// `VALGRIND_CALL_NOREDIR_RAX`: calls the function in rax past its wrapper. One that the engine stands in for is
    /// carried out here.
    pub fn call_unwrapped(&mut self, engine: &mut Engine) -> Action {
        let target = engine.guest().gpr(Gpr::Rax);
        let back = engine.guest().rip;
        let rsp = engine.guest().gpr(Gpr::Rsp).wrapping_sub(8);
        // What the target's own call instruction would do; without a stack it would fault where we cannot.
        if !probe::can_write(rsp) || !probe::can_write(rsp.wrapping_add(7)) {
            return Action::Continue;
        }
        // With the red zone below, as at every call.
        shadow().allow(rsp.wrapping_sub(128), 128 + 8);
        // SAFETY: just found to be writable.
        unsafe { (rsp as *mut u64).write_unaligned(back) };
        engine.guest_mut().set_gpr(Gpr::Rsp, rsp);
        engine.guest_mut().rip = target;
        let replaced = self.replaced.iter().find(|replaced| replaced.symbol == target && replaced.pseudo == 0).copied();
        match replaced {
            Some(replaced) => self.carry_out(engine, replaced),
            None => engine.pass_hook(),
        }
        Action::Continue
    }

    fn carry_out(&mut self, engine: &mut Engine, replaced: Replaced) {
        let guest = engine.guest_mut();
        let value = match replaced.function {
            Function::Text(text) => self.call_text(guest, replaced, text),
            _ => self.call_allocator(guest, replaced),
        };
        guest.set_gpr(Gpr::Rax, value);
        if let Some(fault) = self.pending_fault.take() {
            self.fault_in_hook(guest, replaced, fault);
        }
        // SAFETY: the return address was written by `call_unwrapped`.
        unsafe { guest.return_to_caller() };
    }
}

fn symbols(module: &Module) -> Option<SymbolFile> {
    SymbolFile::open(&CString::new(module.path.as_slice()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_table() {
        let of = |name: &str| {
            let found = wrapper(name.as_bytes(), 1)?;
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            Some((text(found.soname), text(found.function), found.is_wrapper))
        };
        for (name, expected) in [
            ("_vgw00000ZU_NONE_actual", Some(("NONE", "actual", true))),
            ("_vgw00000ZU_libcZdsoZd6_malloc", Some(("libc.so.6", "malloc", true))),
            ("_vgr10050ZU_libcZdsoZa_free_all", Some(("libc.so*", "free_all", false))),
            ("_vgw00000ZZ_libstdcZpZpZa_ZuZnwm", None),
            ("_vgw00000ZZ_libstdcZpZpZa_ZuZZnwm", Some(("libstdc++*", "_Znwm", true))),
            ("_vgw0000ZU_NONE_actual", None),
            ("_vgw0000xZU_NONE_actual", None),
            ("_vgx00000ZU_NONE_actual", None),
            ("_vgw00000UU_NONE_actual", None),
            ("_vgw00000ZU_NONEactual", None),
            ("_vgw", None),
            ("_vgw00000ZU_ZQ_f", None),
        ] {
            let expected = expected.map(|(soname, function, wraps)| (soname.to_owned(), function.to_owned(), wraps));
            assert_eq!(of(name), expected, "{name}");
        }
    }
}
