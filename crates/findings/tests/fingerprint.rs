//! What a fingerprint must ignore, and what it must tell apart.

use std::sync::Arc;

use leakscope_findings::analysis::Frame;
use leakscope_findings::fingerprint::{call_path, normalise, of_leak, of_misuse};
use leakscope_model::MisuseKind;

fn frames(names: &[&str]) -> Vec<Frame> {
    std::iter::once(&"malloc")
        .chain(names)
        .map(|name| {
            // `file+offset` makes a frame without a name.
            let (function, object, svma) = match name.split_once('+') {
                Some((file, offset)) => (None, format!("/lib/{file}"), u64::from_str_radix(offset, 16).unwrap()),
                None => (Some(Arc::from(*name)), "/opt/app".to_owned(), 1),
            };
            Frame {
                ip: 0,
                svma,
                function,
                linkage_name: None,
                file: None,
                directory: None,
                line: 0,
                column: 0,
                inlined: false,
                object: object.into(),
                hook: false,
                module: None,
            }
        })
        .collect()
}

#[test]
fn names_lose_what_changes_from_build_to_build() {
    let table = [
        ("main", "main"),
        ("f.isra.0", "f"),
        ("f.part.1.constprop.2", "f"),
        ("f.cold", "f"),
        ("f.lto_priv.0.lto_priv.1", "f"),
        ("f.llvm.1234567890", "f"),
        ("f(int, char*) [clone .isra.0]", "f"),
        ("f(int, char*)", "f"),
        ("n::C::f(std::function<void (int)>) const", "n::C::f"),
        ("n::C::operator()(int) const", "n::C::operator()"),
        ("n::C::operator()", "n::C::operator()"),
        ("(anonymous namespace)::f(int)", "(anonymous namespace)::f"),
        ("n::(anonymous namespace)::f()", "n::(anonymous namespace)::f"),
        (
            "std::vector<int, std::allocator<int> >::push_back(int&&)",
            "std::vector<int, std::allocator<int> >::push_back",
        ),
        ("void f<int (*)(char)>(int)", "void f<int (*)(char)>"),
        ("f[abi:cxx11](int)", "f"),
        ("std::__cxx11::to_string[abi:cxx11]", "std::__cxx11::to_string"),
        ("core::ops::function::FnOnce::call_once::h0123456789abcdef", "core::ops::function::FnOnce::call_once"),
        ("app::h0123", "app::h0123"),
        ("app::run::{{closure}}#3", "app::run::{{closure}}"),
        ("run()::{lambda(int)#2}::operator()(int) const", "run()::{lambda(int)}::operator()"),
        ("__GI_strdup", "strdup"),
        ("strdup@@GLIBC_2.2.5", "strdup"),
        ("<alloc::vec::Vec<T> as core::clone::Clone>::clone", "<alloc::vec::Vec<T> as core::clone::Clone>::clone"),
        ("a.b", "a.b"),
        (".cold", ".cold"),
        ("", ""),
        (")", ")"),
        ("((", "(("),
        ("f)", "f)"),
    ];
    for (name, expected) in table {
        assert_eq!(normalise(name), expected, "{name}");
    }
}

#[test]
fn paths_are_the_same_across_builds() {
    let base = frames(&["make", "build", "main", "__libc_start_call_main", "_start"]);
    let path = ["make", "build", "main"];
    assert_eq!(call_path(&base), path);
    let same: &[&[&str]] = &[
        &["make", "build", "main"],
        &["make.isra.0", "build", "main"],
        &["make", "build", "build", "build", "main"], // recursion
        &["make", "build", "main", "__libc_start_main_impl", "_start"], // another libc
        &["make", "build", "main", "libc.so.6+2724a"], // below main nothing counts
    ];
    for names in same {
        assert_eq!(of_leak(&frames(names)), of_leak(&base), "{names:?}");
    }
    let other: &[&[&str]] =
        &[&["make", "main"], &["make", "build"], &["make", "built", "main"], &["x", "make", "build", "main"], &[]];
    for names in other {
        assert_ne!(of_leak(&frames(names)), of_leak(&base), "{names:?}");
    }
}

#[test]
fn cycles_are_taken_once() {
    assert_eq!(call_path(&frames(&["f", "a", "b", "a", "b", "a", "b", "main"])), ["f", "a", "b", "main"]);
    assert_eq!(call_path(&frames(&["f", "f", "g", "f", "main"])), ["f", "g", "f", "main"]);
    let deep: Vec<String> = (0..40).map(|i| format!("f{i}")).collect();
    let deep: Vec<&str> = deep.iter().map(String::as_str).collect();
    assert_eq!(call_path(&frames(&deep)).len(), 24);
    // What lies beyond the limit does not count.
    assert_eq!(of_leak(&frames(&deep)), of_leak(&frames(&deep[..30])));
}

#[test]
fn stripped_code_counts_by_module_and_first_offset() {
    let one = frames(&["libx.so+1234", "libx.so+5678", "main"]);
    assert_eq!(call_path(&one), ["libx.so+0x1234", "main"]);
    assert_ne!(of_leak(&one), of_leak(&frames(&["libx.so+1235", "main"])));
    assert_ne!(of_leak(&one), of_leak(&frames(&["liby.so+1234", "main"])));
}

#[test]
fn threads_end_where_they_start() {
    let thread = frames(&["work", "start_thread", "clone3"]);
    assert_eq!(call_path(&thread), ["work"]);
    assert_eq!(call_path(&frames(&["work", "execute_native_thread_routine", "start_thread"])), ["work"]);
}

#[test]
fn classes_tell_findings_apart() {
    let stack = frames(&["f", "main"]);
    assert_ne!(of_leak(&stack), of_misuse(MisuseKind::DoubleFree, &stack));
    assert_ne!(of_misuse(MisuseKind::InvalidFree, &stack), of_misuse(MisuseKind::DoubleFree, &stack));
}

/// Baselines of users hang on these: they never change. Computed from the recipe with another implementation
/// of XXH3 (Python's xxhash): `xxhash.xxh3_64_hexdigest(b"lks1\nleak\nmake\nbuild\nmain\n")`.
#[test]
fn known_fingerprints_stay() {
    assert_eq!(of_leak(&frames(&["make", "build", "main"])).to_string(), "c19d7908af2bdc7f");
    assert_eq!(of_misuse(MisuseKind::DoubleFree, &frames(&["f", "main"])).to_string(), "2f72fc2bfb40f08c");
    assert_eq!("00000000000000ff".parse(), Ok(leakscope_findings::Fingerprint(0xff)));
}
