//! The functions of the target that the engine stands in for, by the names in its modules.

use leakscope_model::AllocFn;

/// A function that is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// Allocates or frees.
    Alloc(AllocFn),
    /// `malloc_usable_size`
    UsableSize,
    /// Of the C library's strings.
    Text(Text),
}

macro_rules! names {
    ($($variant:ident: $($name:literal)+;)*) => {
        /// Functions of strings and memory.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "the C library's own names")]
        pub enum Text { $($variant),* }

        impl Text {
            /// The usual name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => [$($name),+][0]),* }
            }
        }

        /// Every name of a function of strings.
        pub const TEXTS: &[(&str, Text)] = &[$($(($name, Text::$variant)),+),*];
    };
}

names! {
    Strlen: "strlen";
    Strnlen: "strnlen" "__strnlen";
    Strchr: "strchr" "index";
    Strchrnul: "strchrnul" "__strchrnul";
    Strrchr: "strrchr" "rindex";
    Memchr: "memchr";
    Rawmemchr: "rawmemchr" "__rawmemchr";
    Memrchr: "memrchr" "__memrchr";
    Strcmp: "strcmp";
    Strncmp: "strncmp";
    Strcasecmp: "strcasecmp" "__strcasecmp";
    Strncasecmp: "strncasecmp" "__strncasecmp";
    StrcasecmpL: "strcasecmp_l" "__strcasecmp_l";
    StrncasecmpL: "strncasecmp_l" "__strncasecmp_l";
    Memcmp: "memcmp" "bcmp" "__memcmpeq";
    Memcpy: "memcpy";
    Memmove: "memmove";
    Bcopy: "bcopy";
    Mempcpy: "mempcpy" "__mempcpy";
    MemcpyChk: "__memcpy_chk";
    MemmoveChk: "__memmove_chk";
    MempcpyChk: "__mempcpy_chk";
    Memset: "memset";
    MemsetChk: "__memset_chk";
    Bzero: "bzero" "__bzero" "explicit_bzero";
    Strcpy: "strcpy";
    StrcpyChk: "__strcpy_chk";
    Stpcpy: "stpcpy" "__stpcpy";
    StpcpyChk: "__stpcpy_chk";
    Strncpy: "strncpy";
    StrncpyChk: "__strncpy_chk";
    Stpncpy: "stpncpy" "__stpncpy";
    StpncpyChk: "__stpncpy_chk";
    Strcat: "strcat";
    StrcatChk: "__strcat_chk";
    Strncat: "strncat";
    StrncatChk: "__strncat_chk";
    Strlcpy: "strlcpy";
    Strlcat: "strlcat";
    Strstr: "strstr";
    Strcasestr: "strcasestr" "__strcasestr";
    Strspn: "strspn";
    Strcspn: "strcspn";
    Strpbrk: "strpbrk";
    Memmem: "memmem";
    Wcslen: "wcslen";
    Wcsnlen: "wcsnlen" "__wcsnlen";
    Wcschr: "wcschr";
    Wcsrchr: "wcsrchr";
    Wcscmp: "wcscmp";
    Wcsncmp: "wcsncmp";
    Wcscpy: "wcscpy";
    Wcpcpy: "wcpcpy";
    Wmemchr: "wmemchr";
    Wmemcmp: "wmemcmp";
    Wmemset: "wmemset";
    WmemsetChk: "__wmemset_chk";
}

/// Other names of allocation functions than their own.
const ALLOCATION_ALIASES: &[(&str, AllocFn)] = &[
    ("__libc_malloc", AllocFn::Malloc),
    ("__libc_calloc", AllocFn::Calloc),
    ("__libc_realloc", AllocFn::Realloc),
    ("__libc_free", AllocFn::Free),
    ("__libc_memalign", AllocFn::Memalign),
    ("__libc_valloc", AllocFn::Valloc),
    ("__libc_pvalloc", AllocFn::Pvalloc),
    ("__posix_memalign", AllocFn::PosixMemalign),
    ("__libc_reallocarray", AllocFn::Reallocarray),
    ("__libc_cfree", AllocFn::Cfree),
    ("__builtin_new", AllocFn::New),
    ("__builtin_vec_new", AllocFn::NewArray),
    ("__builtin_delete", AllocFn::Delete),
    ("__builtin_vec_delete", AllocFn::DeleteArray),
];

/// By name. One for the life of the engine.
pub struct Names(std::collections::HashMap<&'static str, Function>);

impl Default for Names {
    fn default() -> Self {
        let mut map = std::collections::HashMap::new();
        for &function in AllocFn::ALL {
            map.insert(function.symbol(), Function::Alloc(function));
        }
        map.extend(ALLOCATION_ALIASES.iter().map(|&(name, function)| (name, Function::Alloc(function))));
        map.extend(TEXTS.iter().map(|&(name, text)| (name, Function::Text(text))));
        map.insert("malloc_usable_size", Function::UsableSize);
        Self(map)
    }
}

impl Names {
    /// The function of a name.
    pub fn find(&self, name: &[u8]) -> Option<Function> {
        self.0.get(std::str::from_utf8(name).ok()?).copied()
    }
}

/// Whether a name matches a pattern of `*` and `?`.
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|skip| matches(rest, &name[skip..])),
        Some((b'?', rest)) => name.split_first().is_some_and(|(_, name)| matches(rest, name)),
        Some((letter, rest)) => name.split_first().is_some_and(|(first, name)| first == letter && matches(rest, name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_table() {
        let names = Names::default();
        assert_eq!(names.find(b"malloc"), Some(Function::Alloc(AllocFn::Malloc)));
        assert_eq!(names.find(b"_ZdaPvm"), Some(Function::Alloc(AllocFn::DeleteArraySized)));
        assert_eq!(names.find(b"index"), Some(Function::Text(Text::Strchr)));
        assert_eq!(names.find(b"mallocs"), None);
        assert_eq!(Text::Bzero.name(), "bzero");
    }

    #[test]
    fn patterns_by_table() {
        for (pattern, name, expected) in [
            ("libc.so*", "libc.so.6", true),
            ("*musl*", "libc.musl-x86_64.so.1", true),
            ("NONE", "NONE", true),
            ("lib?.so", "libm.so", true),
            ("lib?.so", "libmm.so", false),
            ("", "", true),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }
}
