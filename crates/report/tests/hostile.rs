//! No name out of a foreign file is more than a name, in any format: every format is written with hostile names in
//! all places that have one, and must be built as it is with harmless ones.

mod analysed;
#[path = "../../findings/tests/support/mod.rs"]
mod support;

use std::io::Read;

use analysed::{Analysed, everything, hostile, sources};
use leakscope_findings::analysis::{LeakCheck, analyse};
use leakscope_findings::recording::{ProcessRecording, Witness};
use leakscope_findings::{Analysis, Options, Suppressions};
use leakscope_model::{LeakKindSet, Tool};
use leakscope_report::{
    Metric, Process, Style, folded, github, gitlab, html, json, junit, markdown, pprof, sarif, speedscope, text,
    valgrind_xml,
};
use serde_json::Value;

/// What a name may hold, and what it would do.
const NAMES: &[(&str, &str)] = &[
    ("clears the screen and sets the title", "\x1b[2J\x1b]0;owned\x07"),
    ("the same by one character", "\u{9b}2J\u{9d}0;owned\u{9c}"),
    ("overwrites what stands before it", "a\rb\x08\x08\x7f"),
    ("ends its line", "a\n==4242== LEAK SUMMARY:\n==4242==    definitely lost: 0 bytes\nb"),
    ("ends its line by another character", "a\u{2028}b\u{2029}c\u{85}d\x0be\x0cf"),
    ("turns text round", "a\u{202e}c.txt\u{202d}\u{2066}x\u{2069}\u{200f}"),
    ("orders GitHub's runner", "a\n::error file=x::owned"),
    ("orders it within a line", "x ##[error]owned ##[add-mask]x"),
    ("orders Azure Pipelines and TeamCity", "##vso[task.setvariable variable=x]y ##teamcity[buildStop]"),
    ("escapes GitHub's escapes", "%0A::error::owned,line=1:: %250A %0D"),
    ("folds GitLab's log", "section_start:1:x\r\x1b[0Kx"),
    ("ends a section of XML", "]]></rawtext><fn>x</fn><![CDATA["),
    ("ends elements of XML", "</fn></frame></stack></error>&<!--\"'"),
    ("ends elements of JUnit", "</failure></testcase><testcase name=\"x\"/>"),
    ("uses an entity", "&lt;b&gt; &#60;i&#62; &xxe;"),
    ("ends a page's data", "</script><script>alert(1)</script><!--<script>"),
    ("is markup", "<img src=x onerror=alert(1)><b>bold</b>"),
    ("is Markdown", "`|](javascript:alert(1)) ![x](http://evil) **b** __i__ ~~s~~ [x]: y"),
    ("ends a table and a quotation", "| a | b |\\|> c # d - e"),
    ("calls people and links", "@everyone #1 www.evil.example https://evil.example evil@evil.example"),
    ("ends a text of JSON", "\",\"x\":[{\"\\"),
    ("ends a folded stack", "a;b 12\nmain 99 "),
    ("ends a rule", "x\n}\n{\n   <y>\n   Memcheck:Leak\n   fun:*\n"),
    ("looks like a template", "${{ secrets.X }} {{7*7}} $(id) `id`"),
];

/// Every place of a recording that can hold a name, beside those that [`hostile`] fills.
fn everywhere(name: &str) -> ProcessRecording {
    let mut recorded = hostile(name);
    recorded.witness = Witness { tool: Tool::Memcheck, version: name.to_owned() };
    for check in &mut recorded.checks {
        check.failure = name.to_owned();
    }
    recorded
}

/// An analysis with a rule of this name that hides something, in a file of this name.
fn analysed(recorded: ProcessRecording, name: &str) -> Analysed {
    let options = Options { leak_check: LeakCheck::Full, show_leak_kinds: LeakKindSet::ALL, ..Options::default() };
    let mut suppressions = Suppressions::new();
    let line: String = name.chars().map(|c| if c == '\n' || c == '\r' { ' ' } else { c }).collect();
    let rule = format!("{{\n   x{line}\n   Memcheck:Leak\n   match-leak-kinds: indirect\n   fun:malloc\n   ...\n}}\n");
    suppressions.add(name, &rule).unwrap();
    let analysis = analyse(if name == TAME { TAME } else { name }, &recorded, &options, &suppressions);
    assert_eq!(analysis.used_suppressions.len(), 1);
    Analysed { recorded, analysis }
}

const TAME: &str = "x";

type Written = fn(&Analysed, &str) -> Vec<u8>;
type Shape = fn(&str) -> Vec<String>;

fn with(write: impl Fn(&mut Vec<u8>, &[Process<'_>])) -> impl Fn(&Analysed) -> Vec<u8> {
    move |analysed| {
        let mut out = Vec::new();
        write(&mut out, &[analysed.process()]);
        out
    }
}

/// Every format: how it is written, and what of it is no name.
const FORMATS: &[(&str, Written, Shape)] = &[
    ("text", |it, _| as_text(&it.analysis), prefixes),
    ("json", |it, _| plain(|out| json::write(out, &it.analysis)), json_shape),
    ("valgrind-xml", |it, name| as_xml(&it.analysis, name), xml_shape),
    ("sarif", |it, _| with(|out, all| sarif::write(out, all, &sources()).unwrap())(it), json_shape),
    ("gitlab", |it, _| with(|out, all| gitlab::write(out, all, &sources()).unwrap())(it), json_shape),
    ("speedscope", |it, _| with(|out, all| speedscope::write(out, all).unwrap())(it), json_shape),
    ("junit", |it, _| with(|out, all| junit::write(out, all).unwrap())(it), xml_shape),
    ("github", |it, _| with(|out, all| github::write(out, all, &sources()).unwrap())(it), commands),
    ("markdown", |it, _| with(|out, all| markdown::write(out, all, &sources()).unwrap())(it), markdown_shape),
    ("html", |it, _| with(|out, all| html::write(out, all, &sources(), &mut |_| None).unwrap())(it), html_shape),
    ("folded", |it, _| with(|out, all| folded::write(out, all, Metric::Live).unwrap())(it), stacks),
    ("pprof", |it, _| unpacked(&with(|out, all| pprof::write(out, all).unwrap())(it)), no_shape),
];

fn plain(write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out).unwrap();
    out
}

fn as_text(analysis: &Analysis) -> Vec<u8> {
    let style = Style {
        error_lists: true,
        fingerprints: true,
        gen_suppressions: true,
        directories: true,
        verbosity: 2,
        ..Style::default()
    };
    plain(|out| text::write(out, analysis, &style))
}

fn as_xml(analysis: &Analysis, name: &str) -> Vec<u8> {
    let style = valgrind_xml::Style {
        tool_command: vec![name.to_owned(); 2],
        user_comment: Some(name.to_owned()),
        gen_suppressions: true,
    };
    plain(|out| valgrind_xml::write(out, analysis, &style))
}

fn unpacked(gzip: &[u8]) -> Vec<u8> {
    plain(|out| flate2::read::GzDecoder::new(gzip).read_to_end(out).map(drop))
}

/// What each line begins with: the process, or the part of a rule.
fn prefixes(text: &str) -> Vec<String> {
    let front = |line: &str| match line.strip_prefix("==4242==") {
        Some(rest) => format!("=={}", rest.len() - rest.trim_start().len()),
        None => line.split(['<', ':', '*', '?']).next().unwrap_or_default().to_owned(),
    };
    text.lines().map(front).collect()
}

/// Keys and types, without the texts.
fn json_shape(text: &str) -> Vec<String> {
    fn walk(value: &Value, path: &str, into: &mut Vec<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| walk(value, &format!("{path}.{key}"), into)),
            Value::Array(list) => list.iter().for_each(|value| walk(value, &format!("{path}[]"), into)),
            Value::String(_) => into.push(format!("{path}: text")),
            Value::Null | Value::Bool(_) | Value::Number(_) => into.push(path.to_owned()),
        }
    }
    let mut shape = Vec::new();
    walk(&serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}")), "", &mut shape);
    shape
}

fn xml_shape(text: &str) -> Vec<String> {
    let document = roxmltree::Document::parse(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let name = |node: roxmltree::Node<'_, '_>| {
        let attributes: Vec<&str> = node.attributes().map(|attribute| attribute.name()).collect();
        format!("{} {}", node.tag_name().name(), attributes.join(" "))
    };
    document.descendants().filter(|node| node.is_element() || node.is_comment()).map(name).collect()
}

/// Word and names of properties of each workflow command; every line must be one.
fn commands(text: &str) -> Vec<String> {
    let command = |line: &str| {
        let (head, _) =
            line.strip_prefix("::").and_then(|rest| rest.split_once("::")).unwrap_or_else(|| panic!("{line}"));
        let (word, properties) = head.split_once(' ').unwrap_or((head, ""));
        let names: Vec<&str> = properties.split(',').map(|pair| pair.split('=').next().unwrap_or_default()).collect();
        format!("{word} {}", names.join(" "))
    };
    text.lines().map(command).collect()
}

/// The elements of a page, as a browser sees them.
fn elements(html: &str) -> Vec<String> {
    let starts = html.match_indices('<').map(|(at, _)| &html[at + 1..]);
    starts.map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "/!-".contains(*c)).collect()).collect()
}

fn markdown_shape(text: &str) -> Vec<String> {
    let mut html = String::new();
    let parser = pulldown_cmark::Parser::new_ext(text, pulldown_cmark::Options::all());
    pulldown_cmark::html::push_html(&mut html, parser);
    assert!(!text.contains("://") && !text.contains("www.") && !text.contains('@'), "{text}");
    elements(&html)
}

/// The elements outside of the page's own program, which is the same in every page, and of what it reads.
fn html_shape(text: &str) -> Vec<String> {
    elements(text)
}

/// How many frames each line has.
fn stacks(text: &str) -> Vec<String> {
    let frames = |line: &str| {
        let (stack, amount) = line.rsplit_once(' ').unwrap();
        amount.parse::<u64>().unwrap();
        stack.split(';').count().to_string()
    };
    let mut shape: Vec<String> = text.lines().map(frames).collect();
    // Lines are sorted by names.
    shape.sort();
    shape
}

fn no_shape(_: &str) -> Vec<String> {
    Vec::new()
}

#[test]
fn no_name_is_more_than_a_name_in_any_format() {
    for (format, write, shape) in FORMATS {
        let tame = write(&analysed(everywhere(TAME), TAME), TAME);
        let tame = shape(&String::from_utf8_lossy(&tame));
        for (what, name) in NAMES {
            let bytes = write(&analysed(everywhere(name), name), name);
            let text = String::from_utf8_lossy(&bytes);
            // In protocol buffers a length may be any byte, so the names themselves are looked for.
            if *format == "pprof" {
                assert!(
                    name.chars().all(|c| c.is_ascii_graphic() || c == ' ') || !text.contains(name),
                    "{what}: {text}"
                );
                continue;
            }
            let is_seen = |c: char| {
                c == '\n'
                    || !c.is_control()
                        && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            };
            let bad = text.lines().find(|line| !line.chars().all(is_seen));
            assert_eq!(bad, None, "{format}, {what}");
            let found = shape(&text);
            let first = found.iter().zip(&tame).position(|(found, tame)| found != tame);
            assert!(found == tame, "{format}, {what}: differs at {first:?}\n{text}");
            // GitHub's and Azure's runners look for these anywhere in a line.
            if *format != "html" {
                assert!(
                    !text.contains("##[") && !text.contains("##vso[") && !text.contains("##team"),
                    "{format}: {text}"
                );
                assert!(
                    *format == "github" || !text.lines().any(|line| line.trim_start().starts_with("::")),
                    "{format}"
                );
            }
        }
    }
}

/// JSON is for programs: what is escaped means the same to them.
#[test]
fn json_keeps_every_name_as_it_is() {
    for (what, name) in NAMES {
        let text = plain(|out| json::write(out, &analysed(everywhere(name), name).analysis));
        let document: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(document["process"]["executable"], *name, "{what}");
        assert_eq!(document["witness"]["version"], *name, "{what}");
    }
}

/// The tame document has all the places that a hostile name could stand in; else the comparison would say nothing.
#[test]
fn names_are_in_every_format() {
    for (format, write, _) in FORMATS {
        const MARK: &str = "Zyx7Mark";
        let text = write(&analysed(everywhere(MARK), MARK), MARK);
        assert!(String::from_utf8_lossy(&text).contains(MARK), "{format}");
    }
    assert!(!everything().memory_errors.is_empty());
}
