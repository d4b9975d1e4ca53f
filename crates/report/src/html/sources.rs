//! The lines of source around the places that findings name.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Lines before and after a place.
const CONTEXT: u32 = 4;
/// Longest line that is shown, in characters.
const LONGEST_LINE: usize = 240;
/// Most text in all: the page must stay small enough to be mailed.
const MOST_BYTES: usize = 400 << 10;
/// A recording is foreign data and a page is passed on: nothing but source files may get into it.
const ENDINGS: &[&str] = &[
    "c", "cc", "cpp", "cxx", "c++", "h", "hh", "hpp", "hxx", "h++", "inl", "inc", "ipp", "tcc", "tpp", "ixx", "cppm",
    "cu", "cuh", "m", "mm", "rs", "go", "zig", "d", "f", "f90", "f95", "f03", "f08", "adb", "ads", "pas", "pp",
    "swift", "vala", "y", "l", "yy", "ll", "s", "S", "asm", "py", "pyx", "cs", "java", "ml", "nim", "cr", "rb", "js",
    "ts",
];

/// Lines of files, by path and number.
pub(super) type Lines = BTreeMap<String, BTreeMap<u32, String>>;

/// Whether the name is that of a source file, or of a header of the C++ library, which has no ending.
fn is_source(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    match name.rsplit_once('.') {
        Some((front, ending)) => !front.is_empty() && ENDINGS.contains(&ending),
        None => path.starts_with("/usr/include/c++/"),
    }
}

/// The lines around `places` (path and line), the most important first. `read` gives the text of a file.
pub(super) fn around(
    places: impl IntoIterator<Item = (String, u32)>,
    read: &mut dyn FnMut(&str) -> Option<String>,
) -> Lines {
    let mut files: HashMap<String, Option<Vec<String>>> = HashMap::new();
    let mut seen: BTreeSet<(String, u32)> = BTreeSet::new();
    let mut lines = Lines::new();
    let mut bytes = 0;
    for (path, line) in places {
        if line == 0 || !is_source(&path) || !seen.insert((path.clone(), line)) {
            continue;
        }
        let text = files.entry(path.clone()).or_insert_with(|| {
            let text = read(&path)?;
            Some(text.lines().map(|line| line.chars().take(LONGEST_LINE).collect()).collect())
        });
        // A file that is shorter than the line is another version of it.
        let Some(text) = text.as_ref().filter(|text| line as usize <= text.len()) else { continue };
        let shown = lines.entry(path).or_default();
        for number in line.saturating_sub(CONTEXT).max(1)..=line.saturating_add(CONTEXT) {
            let Some(words) = text.get(number as usize - 1) else { break };
            if bytes + words.len() > MOST_BYTES {
                return lines;
            }
            shown.entry(number).or_insert_with(|| {
                bytes += words.len();
                words.clone()
            });
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sources_are_asked_for() {
        let mut asked = Vec::new();
        let places =
            ["/etc/shadow", "/home/me/.ssh/id_rsa", "/a/.c", "/a/b.c", "/usr/include/c++/12/vector", "/a/x.key"];
        around(places.map(|path| (path.to_owned(), 1)), &mut |path| {
            asked.push(path.to_owned());
            None
        });
        assert_eq!(asked, ["/a/b.c", "/usr/include/c++/12/vector"]);
    }

    #[test]
    fn context_is_cut_at_the_ends_and_shared() {
        let text: String = (1..=12).map(|number| format!("line {number}\n")).collect();
        let mut read = |_: &str| Some(text.clone());
        let lines = around([("/a.c".to_owned(), 2), ("/a.c".to_owned(), 4), ("/a.c".to_owned(), 13)], &mut read);
        let numbers: Vec<u32> = lines["/a.c"].keys().copied().collect();
        assert_eq!(numbers, (1..=8).collect::<Vec<u32>>());
        assert_eq!(lines["/a.c"][&8], "line 8");
        let lines = around([("/a.c".to_owned(), 12)], &mut read);
        assert_eq!(lines["/a.c"].keys().copied().collect::<Vec<u32>>(), (8..=12).collect::<Vec<u32>>());
    }

    #[test]
    fn a_page_stays_small() {
        let text = format!("{}\n", "x".repeat(200)).repeat(100_000);
        let places = (0..50_000).map(|place| ("/a.c".to_owned(), place * 2 + 1));
        let lines = around(places, &mut |_| Some(text.clone()));
        assert!(lines["/a.c"].values().map(String::len).sum::<usize>() <= MOST_BYTES);
    }
}
