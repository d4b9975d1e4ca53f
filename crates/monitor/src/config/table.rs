//! A table of the configuration, read key by key; what nobody asked for is a mistake.

use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Problem;

/// Mistakes, gathered while reading goes on.
pub(super) struct Problems<'a> {
    text: &'a str,
    found: RefCell<Vec<Problem>>,
}

impl<'a> Problems<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, found: RefCell::default() }
    }

    pub(super) fn add(&self, span: Range<usize>, text: String) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        let problem =
            Problem { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1, text };
        self.found.borrow_mut().push(problem);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.borrow().is_empty()
    }

    pub(super) fn sorted(&self) -> Vec<Problem> {
        let mut found = self.found.borrow().clone();
        found.sort_by_key(|problem| (problem.line, problem.column));
        found
    }
}

/// A table.
pub(super) struct Table<'a> {
    name: String,
    table: &'a DeTable<'a>,
    span: Range<usize>,
    problems: &'a Problems<'a>,
    used: RefCell<Vec<&'static str>>,
}

impl<'a> Table<'a> {
    pub(super) fn new(name: &str, table: &'a DeTable<'a>, span: Range<usize>, problems: &'a Problems<'a>) -> Self {
        Self { name: name.to_owned(), table, span, problems, used: RefCell::default() }
    }

    fn get(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.used.borrow_mut().push(key);
        self.table.get(key)
    }

    /// Whether a key is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.get(key).is_some()
    }

    /// Marks a key as known.
    pub(super) fn has_used(&self, key: &'static str) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn string(&self, key: &'static str) -> Option<&'a str> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(text.as_ref()),
            other => {
                self.wrong_kind(key, value.span(), "a text in quotes", other);
                None
            }
        }
    }

    pub(super) fn boolean(&self, key: &'static str) -> Option<bool> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            other => {
                self.wrong_kind(key, value.span(), "true or false", other);
                None
            }
        }
    }

    pub(super) fn number(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.get(key)?;
        let number = match value.get_ref() {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            other => {
                self.wrong_kind(key, value.span(), "a number", other);
                return None;
            }
        };
        let found = number.filter(|number| range.contains(number));
        if found.is_none() {
            let text = format!("`{key}` must be from {} to {}", range.start(), range.end());
            self.problems.add(value.span(), text);
        }
        found
    }

    /// A text that `decode` understands.
    pub(super) fn with<T>(&self, key: &'static str, decode: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = self.string(key)?;
        match decode(text) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.problem(key, &reason);
                None
            }
        }
    }

    /// A list of texts; one alone may stand without brackets.
    pub(super) fn strings(&self, key: &'static str) -> Vec<(&'a str, Range<usize>)> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let mut found = Vec::new();
        let mut note = |item: &'a Spanned<DeValue<'a>>| match item.get_ref() {
            DeValue::String(text) => found.push((text.as_ref(), item.span())),
            other => self.wrong_kind(key, item.span(), "texts in quotes", other),
        };
        match value.get_ref() {
            DeValue::Array(items) => items.iter().for_each(&mut note),
            _ => note(value),
        }
        found
    }

    pub(super) fn table(&self, key: &'static str) -> Option<Table<'a>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Table::new(&format!("[{key}]"), table, value.span(), self.problems)),
            other => {
                self.wrong_kind(key, value.span(), "a table", other);
                None
            }
        }
    }

    /// All `[[key]]`; a single `[key]` counts as well.
    pub(super) fn tables(&self, key: &'static str) -> Vec<Table<'a>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let name = format!("[[{key}]]");
        let items: Vec<&'a Spanned<DeValue<'a>>> = match value.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            _ => vec![value],
        };
        let mut found = Vec::new();
        for item in items {
            match item.get_ref() {
                DeValue::Table(table) => found.push(Table::new(&name, table, item.span(), self.problems)),
                other => self.wrong_kind(key, item.span(), "a table", other),
            }
        }
        found
    }

    /// A mistake in the value of a key.
    pub(super) fn problem(&self, key: &str, text: &str) {
        let span = self.table.get(key).map_or(self.span.clone(), Spanned::span);
        self.problems.add(span, text.to_owned());
    }

    /// A mistake at a place of the text.
    pub(super) fn problem_at(&self, span: Range<usize>, text: String) {
        self.problems.add(span, text);
    }

    /// A mistake in the table as a whole.
    pub(super) fn own_problem(&self, text: &str) {
        self.problems.add(self.span.clone(), format!("{}: {text}", self.name));
    }

    fn wrong_kind(&self, key: &str, span: Range<usize>, expected: &str, found: &DeValue<'_>) {
        self.problems.add(span, format!("`{key}` must be {expected}, found {}", kind(found)));
    }

    /// Says which keys nobody asked for.
    pub(super) fn finish(&self) {
        let used = self.used.borrow();
        for (key, _) in self.table.iter() {
            let name: &str = key.get_ref();
            if used.contains(&name) {
                continue;
            }
            let near = used.iter().find(|known| is_near(known, name));
            let help =
                near.map_or_else(|| format!("known are {}", used.join(", ")), |near| format!("did you mean `{near}`?"));
            self.problems.add(key.span(), format!("{} has no key `{name}`; {help}", self.name));
        }
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Whether one letter more, less or other makes the same word.
fn is_near(known: &str, found: &str) -> bool {
    let common = known.bytes().zip(found.bytes()).take_while(|(a, b)| a == b).count();
    let rest = |text: &str, skip: usize| text.get(common + skip..).unwrap_or("").to_owned();
    known.len().abs_diff(found.len()) <= 1
        && common > 0
        && (rest(known, 1) == rest(found, 1) || rest(known, 1) == rest(found, 0) || rest(known, 0) == rest(found, 1))
}
