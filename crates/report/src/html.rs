//! A page to look at, in one file: no network, no other files, opens from a mail attachment.
//!
//! What the page shows is data (one JSON text, compressed when it is large); the program that shows it is
//! `web/dist/page.js`, built from `web/src` and committed, so that building leakscope takes no Node.js. The page's
//! Content-Security-Policy allows that one script by its hash and no address at all: names out of hostile files are
//! data, and would not run even if they became markup.

mod data;
mod sources;

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::ZlibEncoder;

use crate::escape::xml;
use crate::place::Sources;
use crate::{Process, finding};

const SCRIPT: &str = include_str!("../web/dist/page.js");
const STYLE: &str = include_str!("../web/dist/page.css");
/// SHA-256 of the script in base64, written by the script's build.
const SCRIPT_HASH: &str = include_str!("../web/dist/page.js.sha256");

/// Shorter data is embedded as it is, so that one can read it in the page's source.
const READABLE_BYTES: usize = 64 << 10;

/// Writes the page on all processes. `read` gives the text of a source file, if it is at hand; it is asked for files
/// whose names end as sources do, and only for those that findings name.
///
/// # Errors
/// Those of `out`.
pub fn write(
    out: &mut dyn Write,
    processes: &[Process<'_>],
    sources: &Sources,
    read: &mut dyn FnMut(&str) -> Option<String>,
) -> io::Result<()> {
    let page = data::Page::new(processes, sources, read);
    let json = serde_json::to_string(&page)?;
    let program = processes.first().map_or("nothing", |process| finding::program(process.analysis));
    writeln!(out, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">")?;
    writeln!(out, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")?;
    writeln!(
        out,
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'sha256-{}'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">",
        SCRIPT_HASH.trim()
    )?;
    writeln!(out, "<title>leakscope: {}</title>\n<style>{STYLE}</style>\n</head>\n<body>", xml(program))?;
    writeln!(out, "<noscript>This page needs JavaScript; `leakscope report` shows the same as text.</noscript>")?;
    writeln!(out, "<div id=\"page\"></div>")?;
    if json.len() <= READABLE_BYTES {
        // Within a string of JSON this is the same character, and no element can begin or end.
        writeln!(out, "<script type=\"application/json\" id=\"data\">{}</script>", json.replace('<', "\\u003c"))?;
    } else {
        let mut deflate = ZlibEncoder::new(Vec::new(), Compression::default());
        deflate.write_all(json.as_bytes())?;
        let text = STANDARD.encode(deflate.finish()?);
        writeln!(out, "<script type=\"application/json\" id=\"data\" data-encoding=\"deflate\">{text}</script>")?;
    }
    writeln!(out, "<script>{SCRIPT}</script>\n</body>\n</html>")
}
