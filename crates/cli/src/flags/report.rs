//! What `report` and `diff` take, and the formats of all subcommands.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use leakscope_report::Metric;

use super::ViewArgs;

/// `leakscope report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// How the report looks.
    #[command(flatten)]
    pub view: ViewArgs,
    /// Walk through the allocation sites in the terminal; h shows the keys
    #[arg(long)]
    pub tui: bool,
    /// Say what each suppression rule hides, and what is wrong with it
    #[arg(long)]
    pub suppression_health: bool,
    /// What --format folded adds up, and what --tui shows first
    #[arg(long, value_name = "WHAT", default_value = "leaked")]
    pub metric: MetricWord,
    /// The recording; several are reported together
    #[arg(value_name = "FILE.leak", required = true, num_args = 1..)]
    pub files: Vec<PathBuf>,
}

/// `leakscope diff`.
#[derive(Clone, Debug, Args)]
pub struct DiffArgs {
    /// How the report looks.
    #[command(flatten)]
    pub view: ViewArgs,
    /// The recording to compare with
    #[arg(value_name = "BEFORE.leak")]
    pub before: PathBuf,
    /// The recording that may be worse
    #[arg(value_name = "AFTER.leak")]
    pub after: PathBuf,
}

/// Formats of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// Everything, for programs; see docs/schema/report-v1.schema.json
    Json,
    /// Valgrind's XML protocol 4
    ValgrindXml,
    /// A page to look at, in one file
    Html,
    /// SARIF 2.1.0, for code scanning
    Sarif,
    /// JUnit XML, for CI servers
    Junit,
    /// Annotations of GitHub Actions
    Github,
    /// GitLab's code-quality report
    Gitlab,
    /// A profile for pprof, Pyroscope and Parca
    Pprof,
    /// Folded stacks, for flame graph tools
    Folded,
    /// A profile for speedscope
    Speedscope,
    /// A comment for a pull request
    Markdown,
}

impl Format {
    /// Whether all processes of a run make one document; else each makes its own.
    pub fn is_document(self) -> bool {
        !matches!(self, Self::Text | Self::Json | Self::ValgrindXml)
    }

    /// Whether all allocation sites count, not only those with findings.
    pub fn shows_all_sites(self) -> bool {
        matches!(self, Self::Html | Self::Pprof | Self::Folded | Self::Speedscope)
    }

    /// What the name of a file asks for.
    pub fn of_file(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let by_ending = [
            (".speedscope.json", Self::Speedscope),
            (".json", Self::Json),
            (".xml", Self::ValgrindXml),
            (".html", Self::Html),
            (".htm", Self::Html),
            (".sarif", Self::Sarif),
            (".pb.gz", Self::Pprof),
            (".pprof", Self::Pprof),
            (".folded", Self::Folded),
            (".md", Self::Markdown),
        ];
        by_ending.into_iter().find(|(ending, _)| name.ends_with(ending)).map_or(Self::Text, |(_, format)| format)
    }
}

/// `--metric`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MetricWord {
    /// Bytes that are definitely, indirectly or possibly lost
    Leaked,
    /// Bytes that were live at the end
    Live,
    /// The most bytes that each site held at any time
    Peak,
    /// Blocks that were freed at once
    Temporary,
    /// All bytes that were allocated
    Total,
}

impl From<MetricWord> for Metric {
    fn from(word: MetricWord) -> Self {
        match word {
            MetricWord::Leaked => Self::Leaked,
            MetricWord::Live => Self::Live,
            MetricWord::Peak => Self::Peak,
            MetricWord::Temporary => Self::Temporary,
            MetricWord::Total => Self::Total,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_by_name() {
        for (name, format) in [
            ("r.json", Format::Json),
            ("r.speedscope.json", Format::Speedscope),
            ("a/R.HTML", Format::Html),
            ("r.sarif", Format::Sarif),
            ("heap.pb.gz", Format::Pprof),
            ("r.md", Format::Markdown),
            ("r.txt", Format::Text),
            ("html", Format::Text),
        ] {
            assert_eq!(Format::of_file(Path::new(name)), format, "{name}");
        }
    }
}
