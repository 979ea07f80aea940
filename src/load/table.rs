//! CSV and TSV: each row becomes a JSON object under the names of the first line.

use std::io::{self, Read};

use csv::ByteRecord;
use serde_json::{Map, Value};

use super::Error;

/// What csv reads ahead in one go.
const READ_AHEAD: usize = 8 << 10;

/// A reader that gives only so many bytes until it is allowed more: a quote that is not closed must not take the whole
/// file into memory. It ends the last line where the file does not, so that every row ends with one.
struct Metered<R> {
    from: R,
    left: usize,
    in_line: bool,
    /// There is nothing behind what was given.
    ended: bool,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::from(io::ErrorKind::QuotaExceeded));
        }
        let most = into.len().min(self.left);
        let mut read = self.from.read(&mut into[..most])?;
        if read == 0 && most > 0 && self.in_line {
            into[0] = b'\n';
            read = 1;
        }
        self.ended = read == 0 && most > 0;
        if let Some(last) = into[..read].last() {
            self.in_line = *last != b'\n';
        }
        self.left -= read;
        Ok(read)
    }
}

/// The rows of a table.
pub(super) struct Table<R> {
    file: String,
    reader: csv::Reader<Metered<R>>,
    columns: Vec<String>,
    max_bytes: usize,
    record: ByteRecord,
}

impl<R: Read> Table<R> {
    pub(super) fn new(file: &str, from: R, delimiter: u8, max_bytes: usize) -> Result<Self, Error> {
        let mut table = Self {
            file: file.to_owned(),
            reader: csv::ReaderBuilder::new()
                .delimiter(delimiter)
                // Tab-separated files have no quoting: a title may begin with a quotation mark.
                .quoting(delimiter != b'\t')
                .has_headers(false)
                .flexible(true)
                // Rows end with one byte, so that the count of lines is exact; `\r` before it is cut off below.
                .terminator(csv::Terminator::Any(b'\n'))
                .buffer_capacity(READ_AHEAD)
                .from_reader(Metered {
                    from,
                    left: 0,
                    in_line: false,
                    ended: false,
                }),
            columns: Vec::new(),
            max_bytes,
            record: ByteRecord::new(),
        };
        if !table.read()? {
            let reason = "there is no first line that names the columns";
            return Err(table.broken(1, reason.to_owned()));
        }
        let names = table.record.iter().map(String::from_utf8_lossy);
        table.columns = column_names(names).map_err(|reason| table.broken(1, reason))?;
        Ok(table)
    }

    /// The next row, and the line that it begins at.
    pub(super) fn next(&mut self) -> Option<Result<(u64, Vec<u8>), Error>> {
        loop {
            match self.read() {
                Ok(false) => return None,
                // An empty line says nothing.
                Ok(true) if self.record.len() == 1 && self.record[0].trim_ascii().is_empty() => {}
                Ok(true) => break,
                Err(error) => return Some(Err(error)),
            }
        }
        let line = (self.reader.position().line() - 1).saturating_sub(self.breaks());
        Some(
            self.object()
                .map(|object| (line, object))
                .map_err(|reason| Error::Row {
                    file: self.file.clone(),
                    line,
                    reason,
                }),
        )
    }

    fn read(&mut self) -> Result<bool, Error> {
        // Once more than what may be read ahead of the row that is too long.
        self.reader.get_mut().left = self.max_bytes + READ_AHEAD;
        let began = self.reader.position().line();
        let max = self.max_bytes;
        let too_long = move || {
            format!(
                "more than {max} bytes in one row (is a quote not closed?); --max-row-bytes allows more"
            )
        };
        match self.reader.read_byte_record(&mut self.record) {
            Ok(true) if self.record.as_slice().len() > max => Err(self.broken(began, too_long())),
            // Every row ends with the end of a line, so nothing is looked for behind it, unless a quote goes on.
            Ok(true) if self.reader.get_ref().ended => {
                let line = self.reader.position().line().saturating_sub(self.breaks());
                Err(self.broken(line, "a quote is not closed".to_owned()))
            }
            Ok(more) => Ok(more),
            Err(error) => {
                let reason = match error.kind() {
                    csv::ErrorKind::Io(e) if e.kind() == io::ErrorKind::QuotaExceeded => too_long(),
                    _ => error.to_string(),
                };
                Err(self.broken(began, reason))
            }
        }
    }

    /// How many lines end within the row.
    fn breaks(&self) -> u64 {
        let bytes = self.record.as_slice().iter();
        bytes.filter(|&&byte| byte == b'\n').count() as u64
    }

    /// Every cell stays a text, so that `007` is not 7; an empty one says nothing and is left out.
    fn object(&self) -> Result<Vec<u8>, String> {
        if self.record.len() != self.columns.len() {
            let (here, named) = (self.record.len(), self.columns.len());
            return Err(format!(
                "{here} columns, where the first line names {named}"
            ));
        }
        let mut object = Map::new();
        for (name, cell) in self.columns.iter().zip(self.cells()) {
            let text =
                std::str::from_utf8(cell).map_err(|_| format!("column {name:?} is not UTF-8"))?;
            if !text.is_empty() {
                object.insert(name.clone(), Value::String(text.to_owned()));
            }
        }
        serde_json::to_vec(&object).map_err(|e| e.to_string())
    }

    /// The row's cells, without the first half of a `\r\n`.
    fn cells(&self) -> impl Iterator<Item = &[u8]> {
        let last = self.record.len().saturating_sub(1);
        self.record.iter().enumerate().map(move |(at, cell)| {
            let cut = cell.strip_suffix(b"\r").filter(|_| at == last);
            cut.unwrap_or(cell)
        })
    }

    fn broken(&self, line: u64, reason: String) -> Error {
        Error::Read {
            file: self.file.clone(),
            line,
            reason,
        }
    }
}

/// The names of a table's columns, without the `:type` that RecBole's files add to each.
pub(crate) fn column_names<S: AsRef<str>>(
    first_line: impl Iterator<Item = S>,
) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::new();
    for (at, cell) in first_line.enumerate() {
        let cell = cell.as_ref();
        let cell = cell.strip_prefix('\u{feff}').unwrap_or(cell);
        let name = cell.split_once(':').map_or(cell, |(name, _)| name).trim();
        if name.is_empty() {
            return Err(format!("column {} has no name", at + 1));
        }
        if names.iter().any(|known| known == name) {
            return Err(format!("two columns are named {name:?}"));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}
