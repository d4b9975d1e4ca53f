//! Globals in reports: where they are defined, what they hold, two of one name.

use super::scariness::Scariness;
use super::{Report, stack};
use crate::depot;
use crate::globals::{Clash, Global, Registered};
use crate::options::options;
use crate::output::Address;
use crate::symbolize;
use alloc::string::String;

/// File and line of a definition, or the module's name.
#[must_use]
pub fn place(global: &Global) -> String {
    if let Some((file, line, column)) = global.location() {
        let mut text = String::from(file);
        if line > 0 {
            text.push_str(&alloc::format!(":{line}"));
            if column > 0 {
                text.push_str(&alloc::format!(":{column}"));
            }
        }
        return text;
    }
    match symbolize::variable_at(global.start) {
        Some(variable) if variable.line > 0 => alloc::format!("{}:{}", variable.file, variable.line),
        _ => String::from(global.module()),
    }
}

/// Prints what a global holds if that is text.
pub fn print_text(global: &Global) {
    const MOST: usize = 1 << 16;
    if global.bytes == 0 || global.bytes > MOST {
        return;
    }
    // SAFETY: a registered variable is mapped.
    let bytes = unsafe { core::slice::from_raw_parts(global.start as *const u8, global.bytes) };
    let Some((0, text)) = bytes.split_last() else { return };
    if text.iter().all(|&byte| byte > 0 && byte < 128)
        && let Ok(text) = core::str::from_utf8(text)
    {
        crate::out!("  '{}' is ascii string '{text}'\n", symbolize::demangle(global.name()));
    }
}

/// `report_globals=2`: a global comes or goes.
pub fn describe(registered: &Registered, what: &str) {
    let global = &registered.global;
    crate::out!(
        "{what} Global[{}]: beg={} size={}/{} name={} source={} module={} dyn_init={} odr_indicator={}\n",
        Address(registered.at),
        Address(global.start),
        global.bytes,
        global.bytes_with_redzone,
        global.name(),
        global.module(),
        crate::modules::find(global.start).map_or_else(String::new, |module| module.path),
        global.is_dynamic,
        Address(global.odr_indicator)
    );
    let (file, line) = match symbolize::variable_at(global.start) {
        Some(variable) => (variable.name, variable.line),
        None => (String::new(), 0),
    };
    if line > 0 {
        crate::out!("  location: name={file}, {line}\n");
    }
}

/// A global whose address no compiler would give it: another object's definition took its place.
pub fn misaligned(registered: &Registered) {
    crate::out_pid!("The following global variable is not properly aligned.\n");
    for line in [
        "This may happen if another global with the same name",
        "resides in another non-instrumented module.",
        "Or the global comes from a C file built w/o -fno-common.",
        "In either case this is likely an ODR violation bug,",
        "but AddressSanitizer can not provide more details.",
    ] {
        crate::out_pid!("{line}\n");
    }
    describe(registered, "Added");
}

/// The object is that of the description: a definition whose place another took lies in the other's.
fn with_module(registered: &Registered) -> String {
    let module = crate::modules::find(registered.at).map_or_else(String::new, |module| module.path);
    alloc::format!("{} in {module}", place(&registered.global))
}

/// Two definitions of one variable.
pub fn odr_violation((old, new): &Clash) {
    let name = symbolize::demangle(new.global.name());
    if crate::suppressions::is_odr_violation(&name) {
        return;
    }
    let report = Report::begin(false);
    report.headline(format_args!("odr-violation ({}):", Address(new.global.start)));
    Scariness::of(10, "odr-violation").print();
    for (number, registered) in [(1, new), (2, old)] {
        crate::out!(
            "  [{number}] size={} '{}' {}\n",
            registered.global.bytes,
            symbolize::demangle(registered.global.name()),
            with_module(registered)
        );
    }
    if old.site != 0 && new.site != 0 {
        crate::out!("These globals were registered at these points:\n");
        for (number, registered) in [(1, new), (2, old)] {
            crate::out!("  [{number}]:\n");
            stack::print(&depot::frames(registered.site));
        }
    }
    crate::out_pid!("HINT: if you don't care about these errors you may set ASAN_OPTIONS=detect_odr_violation=0\n");
    if options().print_summary {
        stack::summary_line(&alloc::format!(
            "odr-violation: global '{}' at {}",
            symbolize::demangle(new.global.name()),
            place(&new.global)
        ));
    }
    report.finish();
}
