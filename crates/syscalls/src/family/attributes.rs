//! Extended attributes.

use crate::rule::{Rule, by, count_of, input, output, text, text_of};
use crate::table::syscalls;
use crate::visit::Visit;

/// `XATTR_NAME_MAX`, and the zero.
const NAME: u32 = 256;

/// The name of an attribute.
const fn name_of(arg: crate::rule::Arg) -> Rule {
    text_of(arg, NAME)
}

const AT_EMPTY_PATH: u64 = 0x1000;

syscalls! {
    /// Extended attributes. A size of 0 asks how many bytes there would be.
    ATTRIBUTES:
    188 setxattr(path: ptr, name: ptr, value: ptr, size: ulong, flags: int)
        [text(path), name_of(name), input(value, count_of(size))];
    189 lsetxattr(path: ptr, name: ptr, value: ptr, size: ulong, flags: int)
        [text(path), name_of(name), input(value, count_of(size))];
    190 fsetxattr(fd: int, name: ptr, value: ptr, size: ulong, flags: int)
        [name_of(name), input(value, count_of(size))];
    191 getxattr(path: ptr, name: ptr, value: ptr, size: ulong)
        [text(path), name_of(name), output(value, count_of(size)).result()];
    192 lgetxattr(path: ptr, name: ptr, value: ptr, size: ulong)
        [text(path), name_of(name), output(value, count_of(size)).result()];
    193 fgetxattr(fd: int, name: ptr, value: ptr, size: ulong) [name_of(name), output(value, count_of(size)).result()];
    194 listxattr(path: ptr, list: ptr, size: ulong) [text(path), output(list, count_of(size)).result()];
    195 llistxattr(path: ptr, list: ptr, size: ulong) [text(path), output(list, count_of(size)).result()];
    196 flistxattr(fd: int, list: ptr, size: ulong) [output(list, count_of(size)).result()];
    197 removexattr(path: ptr, name: ptr) [text(path), name_of(name)];
    198 lremovexattr(path: ptr, name: ptr) [text(path), name_of(name)];
    199 fremovexattr(fd: int, name: ptr) [name_of(name)];
    463 setxattrat(dfd: int, pathname: ptr, at_flags: uint, name: ptr, args: ptr, size: ulong)
        [text(pathname).or_null_if(at_flags, AT_EMPTY_PATH), name_of(name), input(args, count_of(size)), by(set_value)];
    464 getxattrat(dfd: int, pathname: ptr, at_flags: uint, name: ptr, args: ptr, size: ulong)
        [text(pathname).or_null_if(at_flags, AT_EMPTY_PATH), name_of(name), input(args, count_of(size)), by(get_value)];
    465 listxattrat(dfd: int, pathname: ptr, at_flags: uint, list: ptr, size: ulong)
        [text(pathname).or_null_if(at_flags, AT_EMPTY_PATH), output(list, count_of(size)).result()];
    466 removexattrat(dfd: int, pathname: ptr, at_flags: uint, name: ptr)
        [text(pathname).or_null_if(at_flags, AT_EMPTY_PATH), name_of(name)];
}

/// `struct xattr_args`: the value's address, its size, flags.
fn value(visit: &Visit<'_>) -> (u64, u64) {
    let args = visit.arg(4);
    (visit.u64_or_0(args), visit.u32_or_0(args.wrapping_add(8)))
}

fn set_value(visit: &mut Visit<'_>) {
    let (address, size) = value(visit);
    visit.input("setxattrat(args->value)", address, size);
}

fn get_value(visit: &mut Visit<'_>) {
    let (address, size) = value(visit);
    visit.output("getxattrat(args->value)", address, size, visit.returned());
}
