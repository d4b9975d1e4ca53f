//! Where a frame's source lies, as pipelines want it: relative to the repository where it is below it.

use leakscope_findings::analysis::{Frame, Stack};

/// Where the sources are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The directory that paths are made relative to, absolute; empty for none. `leakscope` takes the current one.
    pub root: String,
}

/// A line of a source file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Relative to the root when `below_root`, else as the debug information has it; without `.` and `..` inside.
    pub path: String,
    /// Whether it lies below the root.
    pub below_root: bool,
    /// From 1; 0 when unknown.
    pub line: u32,
    /// From 1; 0 when unknown.
    pub column: u32,
}

impl Sources {
    /// The place of a frame, if its file is known.
    pub(crate) fn place(&self, frame: &Frame) -> Option<Place> {
        let path = path(frame)?;
        let root = self.root.trim_end_matches('/');
        let relative = path.strip_prefix(root).and_then(|rest| rest.strip_prefix('/')).filter(|_| !root.is_empty());
        let (path, below_root) = match relative {
            Some(relative) => (relative.to_owned(), true),
            None => (path, false),
        };
        Some(Place { path, below_root, line: frame.line, column: frame.column })
    }

    /// The place to mark for a stack: the innermost frame below the root, else the innermost one outside of the
    /// system's headers and libraries, else the innermost one that has a file.
    pub(crate) fn primary<'a>(&self, stack: &'a Stack) -> Option<(&'a Frame, Place)> {
        let placed = || stack.frames().iter().filter_map(|frame| Some((&**frame, self.place(frame)?)));
        placed()
            .find(|(_, place)| place.below_root)
            .or_else(|| placed().find(|(_, place)| place.path.starts_with('/') && !place.path.starts_with("/usr/")))
            .or_else(|| placed().next())
    }
}

/// Directory and file of a frame as one path; relative where the debug information has it so.
pub(crate) fn path(frame: &Frame) -> Option<String> {
    let file = frame.file.as_deref().filter(|file| !file.is_empty())?;
    Some(join(frame.directory.as_deref().unwrap_or_default(), file))
}

/// Directory and file as one path; empty when there is no file.
pub(crate) fn join(directory: &str, file: &str) -> String {
    if file.is_empty() || file.starts_with('/') || directory.is_empty() {
        return normal(file);
    }
    normal(&format!("{directory}/{file}"))
}

/// A path without `.`, and without `..` where it is known what it leaves.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match parts.last() {
            Some(last) if part == ".." && *last != ".." => _ = parts.pop(),
            None if part == ".." && path.starts_with('/') => {}
            _ => parts.push(part),
        }
    }
    format!("{}{}", if path.starts_with('/') { "/" } else { "" }, parts.join("/"))
}

/// A path as a reference in a URI (RFC 3986): everything but unreserved characters and slashes percent-encoded.
pub(crate) fn uri(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/+".contains(&byte) {
            out.push(byte as char);
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(directory: &str, file: &str) -> Frame {
        Frame {
            ip: 1,
            svma: 1,
            function: None,
            linkage_name: None,
            file: Some(file.into()),
            directory: (!directory.is_empty()).then(|| directory.into()),
            line: 3,
            column: 0,
            inlined: false,
            object: "".into(),
            hook: false,
            module: None,
        }
    }

    #[test]
    fn paths_below_the_root_are_relative() {
        let sources = Sources { root: "/work/app/".to_owned() };
        for (directory, file, path, below_root) in [
            ("/work/app/src", "a.c", "src/a.c", true),
            ("/work/app", "sub/a.c", "sub/a.c", true),
            ("/work/app/build", "../src/./a.c", "src/a.c", true),
            ("/work/application", "a.c", "/work/application/a.c", false),
            ("/work/app/../other", "a.c", "/work/other/a.c", false),
            ("ignored", "/work/app/a.c", "a.c", true),
            ("./csu/../csu", "libc-start.c", "csu/libc-start.c", false),
            ("", "a.c", "a.c", false),
            ("..", "a.c", "../a.c", false),
            ("/..", "a.c", "/a.c", false),
        ] {
            let place = sources.place(&frame(directory, file)).unwrap();
            assert_eq!((place.path.as_str(), place.below_root), (path, below_root), "{directory} {file}");
        }
        assert!(!Sources::default().place(&frame("/work/app", "a.c")).unwrap().below_root);
    }

    #[test]
    fn uris_have_no_meaning_but_the_path() {
        assert_eq!(uri("/a b/ü#?%.c"), "/a%20b/%C3%BC%23%3F%25.c");
        assert_eq!(uri("c++/x:y"), "c++/x%3Ay");
    }
}
