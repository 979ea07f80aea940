//! The rows of a file as events: whose each is, and when it happened, as the stream's own decoder reads it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use super::Error;
use super::json::JsonLines;
use super::table::Table;
use crate::codec::{Decoded, Reason, Rejected};
use crate::event::Record;
use crate::text::visible;

/// One event to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The file it stands in, as errors name it.
    pub file: Arc<str>,
    /// The line it begins at, from 1.
    pub line: u64,
    /// The user: the record's key.
    pub user: Box<str>,
    /// Event time in milliseconds since the Unix epoch; `None` where the row has none.
    pub time_ms: Option<i64>,
    /// The record's value: a JSON object.
    pub value: Vec<u8>,
}

/// How a file's rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A JSON object a line; empty lines are passed over.
    JsonLines,
    /// Comma-separated, quoted with `"` where needed; the first line names the columns.
    Csv,
    /// Tab-separated and never quoted; the first line names the columns, as `name` or `name:type`.
    Tsv,
}

impl Format {
    /// What the file's name says; `None` where it says nothing known.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        path.extension()?.to_str()?.parse().ok()
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" | "json" => Ok(Self::JsonLines),
            "csv" => Ok(Self::Csv),
            "tsv" | "tab" | "inter" => Ok(Self::Tsv),
            _ => Err("a format is jsonl, csv or tsv".to_owned()),
        }
    }
}

/// Bounds on what is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of a row.
    pub max_row_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_row_bytes: 1 << 20,
        }
    }
}

enum Reader {
    Json(JsonLines<Box<dyn Read + Send>>),
    Table(Box<Table<Box<dyn Read + Send>>>),
}

/// The rows of one file, in its order. After an [`Error::Row`] the next row may still be asked for; after any other error
/// there is none.
pub struct Rows<D> {
    file: Arc<str>,
    reader: Reader,
    decode: D,
    over: bool,
}

impl<D> Rows<D>
where
    D: FnMut(&Record, Option<i64>) -> Result<Decoded, Rejected>,
{
    /// Opens a file; `-` is the standard input, which holds JSON lines unless `format` says otherwise. `decode` is the
    /// input's own decoder ([`crate::codec::Decoder::decode`]), so that what is loaded is what can be read.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::UnknownFormat`], and [`Error::Read`] where a table's first line names no columns.
    pub fn open(
        path: &Path,
        format: Option<Format>,
        limits: Limits,
        decode: D,
    ) -> Result<Self, Error> {
        if path == Path::new("-") {
            let format = format.unwrap_or(Format::JsonLines);
            return Self::new("stdin", Box::new(io::stdin()), format, limits, decode);
        }
        let file = path.display().to_string();
        let Some(format) = format.or_else(|| Format::of(path)) else {
            return Err(Error::UnknownFormat { file });
        };
        match File::open(path) {
            Ok(opened) => Self::new(&file, Box::new(opened), format, limits, decode),
            Err(source) => Err(Error::Open { file, source }),
        }
    }

    /// The rows of anything that can be read; `file` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Read`] where a table's first line names no columns.
    pub fn new(
        file: &str,
        from: Box<dyn Read + Send>,
        format: Format,
        limits: Limits,
        decode: D,
    ) -> Result<Self, Error> {
        let max = limits.max_row_bytes;
        let table = |from, delimiter| Table::new(file, from, delimiter, max).map(Box::new);
        let reader = match format {
            Format::JsonLines => Reader::Json(JsonLines::new(file, from, max)),
            Format::Csv => Reader::Table(table(from, b',')?),
            Format::Tsv => Reader::Table(table(from, b'\t')?),
        };
        Ok(Self {
            file: file.into(),
            reader,
            decode,
            over: false,
        })
    }

    fn row(&mut self, line: u64, value: Vec<u8>) -> Result<Row, Error> {
        let mut record = Record {
            value: Some(value.into()),
            ..Record::default()
        };
        let decoded = match (self.decode)(&record, None) {
            Ok(decoded) => Ok((decoded.user, Some(decoded.time_ms))),
            // The row is right but for its time; any time shows whose it is, and Kafka's is then that of sending.
            Err(rejected) if rejected.reason == Reason::NoTime => {
                (self.decode)(&record, Some(1)).map(|decoded| (decoded.user, None))
            }
            Err(rejected) => Err(rejected),
        };
        let bad = |reason| Error::Row {
            file: self.file.to_string(),
            line,
            reason,
        };
        let (user, time_ms) =
            decoded.map_err(|r| bad(format!("{}: {}", r.reason.name(), visible(&r.detail))))?;
        if user.is_empty() {
            return Err(bad("the user is empty".to_owned()));
        }
        Ok(Row {
            file: Arc::clone(&self.file),
            line,
            user,
            time_ms,
            value: record.value.take().unwrap_or_default().into(),
        })
    }
}

impl<D> Iterator for Rows<D>
where
    D: FnMut(&Record, Option<i64>) -> Result<Decoded, Rejected>,
{
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let read = match &mut self.reader {
            Reader::Json(lines) => lines.next(),
            Reader::Table(table) => table.next(),
        };
        let row = read.map(|read| read.and_then(|(line, value)| self.row(line, value)));
        self.over = match &row {
            Some(Ok(_)) => false,
            Some(Err(error)) => !error.is_row(),
            None => true,
        };
        row
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The decoder of these tests: `user` is a string, `time` seconds, as a number or a numeric string.
    pub fn decode(record: &Record, timestamp_ms: Option<i64>) -> Result<Decoded, Rejected> {
        let rejected = |reason, detail: &str| Rejected {
            reason,
            detail: detail.to_owned(),
        };
        let value: serde_json::Value =
            serde_json::from_slice(record.value.as_deref().unwrap_or_default())
                .map_err(|e| rejected(Reason::Malformed, &e.to_string()))?;
        let user = value["user"]
            .as_str()
            .ok_or_else(|| rejected(Reason::NoUser, "/user is not there"))?;
        let time = &value["time"];
        let seconds = time
            .as_i64()
            .or_else(|| time.as_str().and_then(|t| t.parse().ok()));
        Ok(Decoded {
            user: user.into(),
            time_ms: seconds
                .map(|s| s * 1000)
                .or(timestamp_ms)
                .ok_or_else(|| rejected(Reason::NoTime, "/time is not there"))?,
        })
    }

    pub fn rows(text: &str, format: Format, max_row_bytes: usize) -> Vec<Result<Row, Error>> {
        let from = Box::new(io::Cursor::new(text.as_bytes().to_vec()));
        match Rows::new("f", from, format, Limits { max_row_bytes }, decode) {
            Ok(rows) => rows.collect(),
            Err(error) => vec![Err(error)],
        }
    }

    fn told(rows: &[Result<Row, Error>]) -> Vec<String> {
        rows.iter()
            .map(|row| match row {
                Ok(row) => format!(
                    "{} {} {:?} {}",
                    row.line,
                    row.user,
                    row.time_ms,
                    String::from_utf8_lossy(&row.value)
                ),
                Err(error) => error.to_string(),
            })
            .collect()
    }

    #[test]
    fn json_lines_keep_their_bytes_and_say_whose_they_are_and_when() {
        let text = "\u{feff}{\"user\":\"ann\", \"time\": 5}\r\n\n  {\"user\":\"bob\"}\n{\"time\":1}\nnot json\n{\"user\":\"cy\",\"time\":7}";
        assert_eq!(
            told(&rows(text, Format::JsonLines, 99)),
            [
                r#"1 ann Some(5000) {"user":"ann", "time": 5}"#,
                r#"3 bob None {"user":"bob"}"#,
                "f, line 4: no_user: /user is not there",
                "f, line 5: malformed: expected ident at line 1 column 2",
                r#"6 cy Some(7000) {"user":"cy","time":7}"#,
            ]
        );
    }

    #[test]
    fn an_over_long_json_line_is_one_bad_row_and_is_not_kept_in_memory() {
        let text = format!(
            "{}\n{}\n{}",
            r#"{"user":"ann","time":1}"#,
            "x".repeat(100_000),
            r#"{"user":"bob","time":2}"#
        );
        let rows = rows(&text, Format::JsonLines, 30);
        assert_eq!(
            told(&rows)[1],
            "f, line 2: more than 30 bytes in one line; --max-row-bytes allows more"
        );
        assert_eq!(rows[2].as_ref().map(|r| r.user.as_ref()).ok(), Some("bob"));
        assert_eq!(rows.len(), 3);
    }

    #[test]
    fn a_table_becomes_json_objects_of_texts_without_the_types_of_its_columns() {
        let text = "user:token\ttime:float\ttitle:token_seq\nann\t5\tSay \"Hi\", twice\nbob\t\tx\n";
        assert_eq!(
            told(&rows(text, Format::Tsv, 99)),
            [
                r#"2 ann Some(5000) {"time":"5","title":"Say \"Hi\", twice","user":"ann"}"#,
                r#"3 bob None {"title":"x","user":"bob"}"#,
            ]
        );
        let text = "user,time,title\r\nann,5,\"Say \"\"Hi\"\",\nthen go: now\"\r\n\r\n\nbob,6,y";
        assert_eq!(
            told(&rows(text, Format::Csv, 99)),
            [
                r#"2 ann Some(5000) {"time":"5","title":"Say \"Hi\",\nthen go: now","user":"ann"}"#,
                r#"6 bob Some(6000) {"time":"6","title":"y","user":"bob"}"#,
            ]
        );
    }

    #[test]
    fn a_row_with_other_columns_than_the_first_line_is_bad_and_the_next_is_read() {
        let text = "user,time\nann,1\nbob\ncy,3,4\ndee,4\n";
        assert_eq!(
            told(&rows(text, Format::Csv, 99)),
            [
                r#"2 ann Some(1000) {"time":"1","user":"ann"}"#,
                "f, line 3: 1 columns, where the first line names 2",
                "f, line 4: 3 columns, where the first line names 2",
                r#"5 dee Some(4000) {"time":"4","user":"dee"}"#,
            ]
        );
    }

    #[test]
    fn a_table_that_cannot_be_trusted_ends_at_once() {
        for (text, reason) in [
            (
                "",
                "f, line 1: cannot be read on: there is no first line that names the columns",
            ),
            (
                "user,,time\n",
                "f, line 1: cannot be read on: column 2 has no name",
            ),
            (
                "user,time,user\n",
                r#"f, line 1: cannot be read on: two columns are named "user""#,
            ),
        ] {
            assert_eq!(told(&rows(text, Format::Csv, 99)), [reason]);
        }
        // A quote that never ends would take the whole file for one row.
        let text = format!("user,time\nann,1\n\"bob,{}", "1\n".repeat(200_000));
        let read = told(&rows(&text, Format::Csv, 1000));
        assert_eq!(read.len(), 2);
        assert_eq!(
            read[1],
            "f, line 3: cannot be read on: more than 1000 bytes in one row (is a quote not closed?); --max-row-bytes allows more"
        );
        // One that takes in the end of the file is told where it begins, whether the file ends its last line or not.
        for (text, line) in [
            ("user,time\nann,1\n\n\"bob,2\ncy,3", 4),
            ("user,time\nann,1\n\n\"bob,2\ncy,3\n", 4),
            ("user,time\nann,1\nbob,\"", 3),
            ("user,\"time", 1),
        ] {
            let read = told(&rows(text, Format::Csv, 1000));
            let reason = format!("f, line {line}: cannot be read on: a quote is not closed");
            assert_eq!(read.last(), Some(&reason), "{text:?}");
        }
    }

    #[test]
    fn the_name_tells_the_format_and_an_unknown_one_is_named() {
        for (name, format) in [
            ("a.jsonl", Some(Format::JsonLines)),
            ("a.NDJSON", Some(Format::JsonLines)),
            ("dir/a.csv", Some(Format::Csv)),
            ("ml-100k.inter", Some(Format::Tsv)),
            ("a.parquet", None),
            ("a", None),
        ] {
            assert_eq!(Format::of(Path::new(name)), format, "{name}");
        }
        let open = |name: &str| Rows::open(Path::new(name), None, Limits::default(), decode).err();
        assert!(matches!(open("a.bin"), Some(Error::UnknownFormat { file }) if file == "a.bin"));
        assert!(
            matches!(open("no/such.csv"), Some(Error::Open { file, .. }) if file == "no/such.csv")
        );
    }
}
