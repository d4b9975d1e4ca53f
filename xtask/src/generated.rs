//! Pages that are partly written by hand: a task rewrites only what stands between its markers.

use std::path::Path;

use anyhow::{Context, Result};

/// Replaces what stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->` in a file.
///
/// # Errors
/// The file cannot be read or written, or lacks the markers.
pub fn rewrite(path: &Path, name: &str, body: &str) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let new = replaced(&text, name, body)
        .with_context(|| format!("{} lacks the markers `generated: {name}`", path.display()))?;
    std::fs::write(path, new).with_context(|| format!("write {}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

fn replaced(text: &str, name: &str, body: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- generated: {name} -->"), format!("<!-- end of {name} -->"));
    let start = text.find(&begin)? + begin.len();
    let stop = start + text[start..].find(&end)?;
    Some(format!("{}\n{}\n{}", &text[..start], body.trim_end(), &text[stop..]))
}

#[cfg(test)]
mod tests {
    use super::replaced;

    #[test]
    fn only_the_marked_part_changes() {
        let page = "by hand\n<!-- generated: speed -->\nold\n<!-- end of speed -->\nby hand too\n";
        let expected = "by hand\n<!-- generated: speed -->\nnew\n<!-- end of speed -->\nby hand too\n";
        assert_eq!(replaced(page, "speed", "new\n").as_deref(), Some(expected));
        assert_eq!(replaced(page, "memory", "new"), None);
    }
}
