//! What is looked at before a program is started in the engine: less than for the injected library, as static programs
//! and any C library will do.

use std::ffi::OsStr;
use std::path::Path;

use leakscope_process::elf::Linkage;
use leakscope_process::privileges::{Raise, read_raise};

use crate::Error;
use crate::preflight::{Checked, Wanted, check_for};

/// Finds `program` as a shell would, and makes sure that it can run in the engine.
///
/// # Errors
/// [`Error::Refused`] with one sentence that says why not, and what to do.
pub fn check(program: &OsStr) -> Result<Checked, Error> {
    check_for(program, Wanted::Engine)
}

/// What is wrong with a program for the engine, beside its architecture.
pub(crate) fn check_image(path: &Path, linkage: &Linkage) -> Result<(), Error> {
    let refused = |why: &str| Err(Error::Refused(format!("{}: {why}", path.display())));
    match linkage {
        Linkage::SharedLibrary => return refused("it is a shared library, not a program; give a program that uses it"),
        Linkage::NotAProgram => return refused("it is an object or core file, not a program; link it first"),
        Linkage::Dynamic { interpreter } if !interpreter.exists() => {
            return refused(&format!(
                "its dynamic loader {} does not exist here; install the C library that it was built for",
                interpreter.display()
            ));
        }
        _ => {}
    }
    let copy =
        "and code that runs in a simulated CPU cannot have that; trace a copy without it (cp it: a copy loses it)";
    match read_raise(path) {
        Ok(Some(Raise::SetUid(uid))) => {
            refused(&format!("it is set-user-ID (to user {uid}), {copy}, or run leakscope as that user"))
        }
        Ok(Some(Raise::SetGid(gid))) => refused(&format!("it is set-group-ID (to group {gid}), {copy}")),
        Ok(Some(Raise::Capabilities)) => {
            refused(&format!("it has file capabilities, {copy}, or run leakscope as root"))
        }
        Ok(None) => Ok(()),
        Err(error) => refused(&format!("cannot look at it: {error}; check the path")),
    }
}
