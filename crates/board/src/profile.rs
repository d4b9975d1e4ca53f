//! Profiles of a target for the page's flame graph: one moment, or one beside an earlier one. The document is that of the
//! report's page (`crates/report/src/html/data.rs`), as far as its flame graph reads it: texts once, stacks as a tree, sites
//! as columns.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use leakscope_history::{History, HistoryError, Site};
use serde_json::{Value, json};

/// The moments of which there are profiles of a target, by what took them.
///
/// # Errors
/// When the history cannot be read.
pub(crate) fn moments(path: &Path, target: &str) -> Result<Value, HistoryError> {
    let history = History::open_read_only(path)?;
    let mut sources: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for moment in history.profiles(target)? {
        sources.entry(moment.source).or_default().push(moment.at);
    }
    Ok(json!({ "sources": sources }))
}

/// The profile of a moment; with `before`, each site also has what it had then.
///
/// # Errors
/// When the history cannot be read.
pub(crate) fn profile(
    path: &Path,
    target: &str,
    source: &str,
    at: u64,
    before: Option<u64>,
) -> Result<Value, HistoryError> {
    let history = History::open_read_only(path)?;
    let now = history.profile(target, source, at)?;
    let before = before.map(|before| history.profile(target, source, before)).transpose()?.flatten();
    Ok(document(now.as_ref(), before.as_ref()))
}

type Taken = (u64, Vec<Site>);

fn document(now: Option<&Taken>, before: Option<&Taken>) -> Value {
    let mut tree = Tree::default();
    let mut sites: BTreeMap<&str, Both> = BTreeMap::new();
    for site in now.into_iter().flat_map(|(_, sites)| sites) {
        sites.entry(&site.fingerprint).or_default().now = Some(site);
    }
    for site in before.into_iter().flat_map(|(_, sites)| sites) {
        sites.entry(&site.fingerprint).or_default().before = Some(site);
    }
    let mut columns: [Vec<u64>; 5] = Default::default();
    let mut list = Vec::new();
    for (fingerprint, both) in &sites {
        let Some(known) = both.now.or(both.before) else { continue };
        let node = tree.stack(&known.stack);
        let (later, earlier) = (bytes(both.now), bytes(both.before));
        let values = [u64::from(node), later, earlier, later.saturating_sub(earlier), earlier.saturating_sub(later)];
        columns.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
        list.push(json!({
            "fingerprint": fingerprint, "node": node, "stack": known.stack, "bytes": later, "before": earlier,
            "blocks": both.now.map(|site| site.blocks), "blocks_before": both.before.map(|site| site.blocks),
        }));
    }
    let [node, live, earlier, grown, shrunk] = columns;
    let mut columns = json!({ "process": vec![0; node.len()], "node": node, "live": live });
    if before.is_some() {
        columns["before"] = json!(earlier);
        columns["grown"] = json!(grown);
        columns["shrunk"] = json!(shrunk);
    }
    json!({
        "at": now.map(|(at, _)| at), "before": before.map(|(at, _)| at), "list": list,
        "texts": tree.texts, "frames": tree.frames, "nodes": { "up": tree.up, "frame": tree.frame }, "sites": columns,
        "sources": [], "records": [],
    })
}

/// A site at the two moments.
#[derive(Default)]
struct Both<'a> {
    now: Option<&'a Site>,
    before: Option<&'a Site>,
}

fn bytes(site: Option<&Site>) -> u64 {
    site.map_or(0, |site| site.bytes)
}

/// Stacks that share their outer frames. Node 0 is the root.
struct Tree {
    texts: Vec<String>,
    frames: BTreeMap<&'static str, Vec<u32>>,
    up: Vec<u32>,
    frame: Vec<u32>,
    known_texts: HashMap<String, u32>,
    known_frames: HashMap<String, u32>,
    known_nodes: HashMap<(u32, u32), u32>,
}

impl Default for Tree {
    fn default() -> Self {
        let frames = ["name", "file", "line", "module"].into_iter().map(|column| (column, Vec::new())).collect();
        let (texts, known_texts) = (vec![String::new()], HashMap::from([(String::new(), 0)]));
        Self {
            texts,
            frames,
            up: vec![0],
            frame: vec![0],
            known_texts,
            known_frames: HashMap::new(),
            known_nodes: HashMap::new(),
        }
    }
}

impl Tree {
    /// The node of a stack whose innermost frame comes first.
    fn stack(&mut self, stack: &[String]) -> u32 {
        let unnamed = ["unknown".to_owned()];
        let stack = if stack.is_empty() { &unnamed } else { stack };
        stack.iter().rev().fold(0, |parent, text| {
            let frame = self.frame(text);
            let next = self.up.len() as u32;
            let node = *self.known_nodes.entry((parent, frame)).or_insert(next);
            if node == next {
                self.up.push(next - parent);
                self.frame.push(frame);
            }
            node
        })
    }

    fn frame(&mut self, text: &str) -> u32 {
        if let Some(&known) = self.known_frames.get(text) {
            return known;
        }
        let (name, file, line) = place(text);
        // Without the module, frames of one file look alike.
        let module = if file.is_empty() { name.split_once('+').map_or("", |(module, _)| module) } else { file };
        let row = [("name", self.text(name)), ("file", self.text(file)), ("line", line), ("module", self.text(module))];
        let number = self.frames["name"].len() as u32;
        for (column, value) in row {
            self.frames.entry(column).or_default().push(value);
        }
        self.known_frames.insert(text.to_owned(), number);
        number
    }

    fn text(&mut self, text: &str) -> u32 {
        let next = self.texts.len() as u32;
        let number = *self.known_texts.entry(text.to_owned()).or_insert(next);
        if number == next {
            self.texts.push(text.to_owned());
        }
        number
    }
}

/// Function, file and line of `load (cache.c:12)`; a frame without a place is a name alone.
fn place(text: &str) -> (&str, &str, u32) {
    let found = || {
        let (name, place) = text.strip_suffix(')')?.rsplit_once(" (")?;
        let (file, line) = place.rsplit_once(':')?;
        Some((name, file, line.parse().ok()?))
    };
    found().unwrap_or((text, "", 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(fingerprint: &str, stack: &[&str], bytes: u64) -> Site {
        let stack = stack.iter().map(|&frame| frame.to_owned()).collect();
        Site { fingerprint: fingerprint.to_owned(), stack, bytes, blocks: 1 }
    }

    #[test]
    fn places_of_frames() {
        assert_eq!(place("load (cache.c:12)"), ("load", "cache.c", 12));
        assert_eq!(place("f(int) const (a b.cpp:3)"), ("f(int) const", "a b.cpp", 3));
        for plain in ["f(int)", "operator() (x)", "lib.so+0x12", "", "(", "a (:)"] {
            assert_eq!(place(plain), (plain, "", 0));
        }
    }

    #[test]
    fn two_moments_side_by_side() {
        let now = (20, vec![site("a", &["malloc", "f (x.c:1)", "main"], 30), site("b", &["malloc", "g", "main"], 5)]);
        let before = (10, vec![site("b", &["malloc", "g", "main"], 9), site("c", &[], 4)]);
        let found = document(Some(&now), Some(&before));
        let column = |name: &str| -> Vec<u64> {
            found["sites"][name].as_array().unwrap().iter().map(|value| value.as_u64().unwrap()).collect()
        };
        assert_eq!((column("live"), column("before")), (vec![30, 5, 0], vec![0, 9, 4]));
        assert_eq!((column("grown"), column("shrunk")), (vec![30, 0, 0], vec![0, 4, 4]));
        assert_eq!((&found["at"], &found["before"]), (&json!(20), &json!(10)));
        // main, f, malloc, g, malloc, unknown: `main` is shared.
        assert_eq!(found["nodes"]["up"], json!([0, 1, 1, 1, 3, 1, 6]));
        assert_eq!(column("node"), [3, 5, 6]);
        assert_eq!(found["frames"]["line"], json!([0, 1, 0, 0, 0]));
        let alone = document(Some(&now), None);
        assert_eq!((&alone["sites"]["before"], &alone["before"]), (&Value::Null, &Value::Null));
        assert_eq!(document(None, None)["nodes"]["up"], json!([0]));
    }
}
