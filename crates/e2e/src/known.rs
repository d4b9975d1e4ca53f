//! `fixtures/known-failures.toml`: what leakscope does not do right yet, with its cause.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::paths::fixtures_dir;
use crate::tool::Tool;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    /// Fixture to cause.
    fixtures: BTreeMap<String, String>,
}

/// The listed fixtures with their causes.
///
/// # Errors
/// The list cannot be read.
pub fn known_failures() -> Result<BTreeMap<String, String>> {
    let path = fixtures_dir().join("known-failures.toml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let known: Known = toml::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(known.fixtures)
}

/// The verdict on a fixture: a failure that is listed is none, and a listed one that passes is one.
///
/// # Errors
/// It failed and is not listed, or it passed and is.
pub fn judge(tool: Tool, fixture: &str, outcome: Result<()>) -> Result<()> {
    let known = if tool == Tool::Leakscope { known_failures()?.remove(fixture) } else { None };
    weigh(fixture, known.as_deref(), outcome)
}

fn weigh(fixture: &str, known: Option<&str>, outcome: Result<()>) -> Result<()> {
    match (known, outcome) {
        (Some(cause), Ok(())) => bail!("{fixture} passes now; take it off fixtures/known-failures.toml ({cause})"),
        (Some(cause), Err(error)) => {
            eprintln!("known failure: {cause}\n{error:#}");
            Ok(())
        }
        (None, outcome) => outcome,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_listed_failure_that_passes_is_an_error() {
        assert!(weigh("c/x.c", Some("cause"), Err(anyhow!("differs"))).is_ok());
        assert!(weigh("c/x.c", Some("cause"), Ok(())).unwrap_err().to_string().contains("take it off"));
        assert!(weigh("c/x.c", None, Err(anyhow!("differs"))).is_err());
        assert!(weigh("c/x.c", None, Ok(())).is_ok());
    }

    #[test]
    fn the_list_names_fixtures_that_exist() {
        for (fixture, cause) in known_failures().unwrap() {
            assert!(fixtures_dir().join(&fixture).exists(), "{fixture}");
            assert!(cause.len() > 20, "{fixture}: `{cause}` is no cause");
        }
    }
}
