//! Functions called with arguments that do not fit: overlaps, negative sizes, containers, pointer pairs.

use super::scariness::Scariness;
use super::{Report, describe, stack};
use crate::output::Address;
use crate::unwind::Caller;

/// Source and destination of a copy overlap.
#[cold]
#[inline(never)]
pub fn overlap(caller: &Caller, function: &str, first: (usize, usize), second: (usize, usize)) {
    if crate::suppressions::is_interceptor_suppressed(function) || crate::suppressions::is_stack_suppressed(caller) {
        return;
    }
    let what = alloc::format!("{function}-param-overlap");
    let report = Report::begin(false);
    report.headline(format_args!(
        "{what}: memory ranges [{},{}) and [{}, {}) overlap",
        Address(first.0),
        Address(first.0 + first.1),
        Address(second.0),
        Address(second.0 + second.1)
    ));
    Scariness::of(10, &what).print();
    let frames = caller.frames(256);
    stack::print(&frames);
    describe::describe(first.0, first.1, "");
    describe::describe(second.0, second.1, "");
    stack::summary(&what, &frames);
    report.finish();
}

/// A size that is negative when seen as a signed number.
#[cold]
#[inline(never)]
pub fn negative_size(caller: &Caller, address: usize, bytes: usize) {
    let report = Report::begin(false);
    report.headline(format_args!("negative-size-param: (size={})", bytes as isize));
    Scariness::of(10, "negative-size-param").print();
    let frames = caller.frames(256);
    stack::print(&frames);
    describe::describe(address, bytes, "");
    stack::summary("negative-size-param", &frames);
    report.finish();
}

/// `__sanitizer_annotate_contiguous_container` with bounds in the wrong order.
#[cold]
pub fn bad_container(caller: &Caller, [begin, end, old_middle, new_middle]: [usize; 4]) {
    let what = "bad-__sanitizer_annotate_contiguous_container";
    let report = Report::begin(false);
    report.headline(format_args!("bad parameters to __sanitizer_annotate_contiguous_container:"));
    crate::out!(
        "      beg     : {}\n      end     : {}\n      old_mid : {}\n      new_mid : {}\n",
        Address(begin),
        Address(end),
        Address(old_middle),
        Address(new_middle)
    );
    if !begin.is_multiple_of(8) {
        crate::out!("ERROR: beg is not aligned by 8\n");
    }
    let frames = caller.frames(256);
    stack::print(&frames);
    stack::summary(what, &frames);
    report.finish();
}

/// The same for containers with room at both ends.
#[cold]
pub fn bad_double_ended_container(caller: &Caller, bounds: [usize; 6]) {
    let what = "bad-__sanitizer_annotate_double_ended_contiguous_container";
    let report = Report::begin(false);
    report.headline(format_args!("bad parameters to __sanitizer_annotate_double_ended_contiguous_container:"));
    let names = [
        "storage_beg        ",
        "storage_end        ",
        "old_container_beg  ",
        "old_container_end  ",
        "new_container_beg  ",
        "new_container_end  ",
    ];
    for (name, bound) in names.iter().zip(bounds) {
        crate::out!("      {name}: {}\n", Address(bound));
    }
    if !bounds[0].is_multiple_of(8) {
        crate::out!("ERROR: storage_beg is not aligned by 8\n");
    }
    let frames = caller.frames(256);
    stack::print(&frames);
    stack::summary(what, &frames);
    report.finish();
}

/// The program asks for memory that it can write and execute: a warning, the program goes on.
#[cold]
#[inline(never)]
pub fn writable_executable(caller: &Caller) {
    let frames = caller.frames(256);
    crate::out_pid!("WARNING: AddressSanitizer: writable-executable page usage\n");
    stack::print(&frames);
    stack::summary("w-and-x-usage", &frames);
}

/// Two pointers are compared or subtracted that belong to different objects.
#[cold]
#[inline(never)]
pub fn invalid_pointer_pair(caller: &Caller, first: usize, second: usize) {
    let what = "invalid-pointer-pair";
    let report = Report::begin(false);
    report.headline(format_args!("{what}: {} {}", Address(first), Address(second)));
    Scariness::of(10, what).print();
    let frames = caller.frames(256);
    stack::print(&frames);
    describe::describe(first, 1, what);
    describe::describe(second, 1, what);
    stack::summary(what, &frames);
    report.finish();
}
