//! What the target gets from exec: its arguments, and the environment that we were given with our two entries in it.
//!
//! The order of the entries, entries without `=` and repeated ones are the target's to see, so the block is copied as
//! it is. The injected library takes ours out again (`preload`'s `environment`): its own variable, and the first
//! name of each LD_PRELOAD. Sources: environ(7), execve(2), ld.so(8).

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use leakscope_ledger::wire;

use crate::spawn::Request;

/// The dynamic loader's variable.
const LD_PRELOAD: &[u8] = b"LD_PRELOAD=";
/// What runs a file that is neither an ELF program nor begins with `#!`, as execvp(3) does.
const SHELL: &CStr = c"/bin/sh";

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// The entries of our own environment, as they are.
pub(crate) fn given() -> Vec<Vec<u8>> {
    let mut entries = Vec::new();
    // SAFETY: a null-terminated array of C strings, which nothing in this program changes; it may be null.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            entries.push(CStr::from_ptr(*entry).to_bytes().to_vec());
            entry = entry.add(1);
        }
    }
    entries
}

/// The given entries with our library in front of each LD_PRELOAD and with our variable; what is new comes last.
pub(crate) fn traced(given: &[Vec<u8>], library: &Path, variable: &str) -> Vec<Vec<u8>> {
    let library = library.as_os_str().as_bytes();
    let ours = format!("{}=", wire::ENV).into_bytes();
    let mut entries = Vec::with_capacity(given.len() + 2);
    let mut preloads = false;
    for entry in given.iter().filter(|entry| !entry.starts_with(&ours)) {
        match entry.strip_prefix(LD_PRELOAD) {
            // The colon stays also where nothing follows: it tells a variable that was empty from none.
            Some(users) => entries.push([LD_PRELOAD, library, b":", users].concat()),
            None => entries.push(entry.clone()),
        }
        preloads |= entry.starts_with(LD_PRELOAD);
    }
    if !preloads {
        entries.push([LD_PRELOAD, library].concat());
    }
    entries.push(variable.as_bytes().to_vec());
    entries
}

/// A C string, and arrays of pointers to others, ready for a child that may not allocate.
pub(crate) struct Exec {
    program: CString,
    arguments: Strings,
    /// The same program run by the shell.
    shell_arguments: Strings,
    environment: Strings,
}

impl Exec {
    /// Prepares the start of a program.
    ///
    /// # Errors
    /// A zero byte in a name.
    pub(crate) fn new(request: &Request, environment: Vec<Vec<u8>>) -> io::Result<Self> {
        let program = request.program.as_os_str().as_bytes().to_vec();
        let rest: Vec<Vec<u8>> = request.arguments.iter().map(|word| word.clone().into_vec()).collect();
        let words = |front: &[&[u8]]| front.iter().map(|word| word.to_vec()).chain(rest.iter().cloned()).collect();
        Ok(Self {
            arguments: Strings::new(words(&[request.argv0.as_bytes()]))?,
            shell_arguments: Strings::new(words(&[SHELL.to_bytes(), &program]))?,
            environment: Strings::new(environment)?,
            program: CString::new(program)?,
        })
    }

    /// Turns this process into the program; comes back only when that fails. Async-signal-safe.
    pub(crate) fn run(&self) -> io::Error {
        // SAFETY: null-terminated arrays of C strings that `self` owns.
        unsafe {
            libc::execve(self.program.as_ptr(), self.arguments.as_ptr(), self.environment.as_ptr());
            if *libc::__errno_location() == libc::ENOEXEC {
                libc::execve(SHELL.as_ptr(), self.shell_arguments.as_ptr(), self.environment.as_ptr());
            }
        }
        io::Error::last_os_error()
    }
}

/// C strings and the null-terminated array of their addresses.
struct Strings {
    /// Owns what the addresses point to; moving the vector does not move the strings.
    _owned: Vec<CString>,
    addresses: Vec<*const c_char>,
}

// SAFETY: the addresses lead to memory that the value itself owns and never changes.
unsafe impl Send for Strings {}
// SAFETY: as above.
unsafe impl Sync for Strings {}

impl Strings {
    fn new(words: Vec<Vec<u8>>) -> io::Result<Self> {
        let owned = words.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let addresses = owned.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect();
        Ok(Self { _owned: owned, addresses })
    }

    fn as_ptr(&self) -> *const *const c_char {
        self.addresses.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traced_from(given: &[&str]) -> Vec<String> {
        let given: Vec<Vec<u8>> = given.iter().map(|entry| entry.as_bytes().to_vec()).collect();
        let entries = traced(&given, Path::new("/c/l.so"), &format!("{}=x", wire::ENV));
        entries.into_iter().map(|entry| String::from_utf8(entry).unwrap()).collect()
    }

    #[test]
    fn the_environment_keeps_its_order_and_our_library_comes_first() {
        let ours = format!("{}=x", wire::ENV);
        let stale = format!("{}=stale", wire::ENV);
        for (given, expected) in [
            (&[][..], &["LD_PRELOAD=/c/l.so", &ours][..]),
            (&["Z=1", "odd", "A=2", "Z=3"], &["Z=1", "odd", "A=2", "Z=3", "LD_PRELOAD=/c/l.so", &ours]),
            (&["LD_PRELOAD=/u.so b:c", "A=2"], &["LD_PRELOAD=/c/l.so:/u.so b:c", "A=2", &ours]),
            (&["LD_PRELOAD=", "A=2"], &["LD_PRELOAD=/c/l.so:", "A=2", &ours]),
            (&[&stale, "A=2"], &["A=2", "LD_PRELOAD=/c/l.so", &ours]),
        ] {
            assert_eq!(traced_from(given), expected, "{given:?}");
        }
    }
}
