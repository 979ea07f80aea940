//! A JSON object a line. Its bytes go on as they are: what they mean is the decoder's to say.

use std::io::{self, BufRead, BufReader, Read};

use super::Error;

/// The lines of a file, each within the bound.
pub(super) struct JsonLines<R> {
    file: String,
    from: BufReader<R>,
    max_bytes: usize,
    line: u64,
}

impl<R: Read> JsonLines<R> {
    pub(super) fn new(file: &str, from: R, max_bytes: usize) -> Self {
        Self {
            file: file.to_owned(),
            from: BufReader::new(from),
            max_bytes,
            line: 0,
        }
    }

    /// The next line that is not empty, and its number.
    pub(super) fn next(&mut self) -> Option<Result<(u64, Vec<u8>), Error>> {
        loop {
            self.line += 1;
            let mut bytes = Vec::new();
            // Two bytes more than allowed, for a line end.
            let most = self.max_bytes as u64 + 2;
            let read = (&mut self.from).take(most).read_until(b'\n', &mut bytes);
            match read {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(self.broken(&error))),
            }
            let ended = bytes.ends_with(b"\n");
            let mut text = bytes.as_slice();
            if self.line == 1 {
                text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
            }
            text = text.trim_ascii();
            if text.len() > self.max_bytes || (!ended && bytes.len() as u64 == most) {
                if !ended && let Err(error) = self.skip_line() {
                    return Some(Err(self.broken(&error)));
                }
                return Some(Err(Error::Row {
                    file: self.file.clone(),
                    line: self.line,
                    reason: format!(
                        "more than {} bytes in one line; --max-row-bytes allows more",
                        self.max_bytes
                    ),
                }));
            }
            if !text.is_empty() {
                return Some(Ok((self.line, text.to_vec())));
            }
        }
    }

    fn skip_line(&mut self) -> io::Result<()> {
        self.from.skip_until(b'\n').map(|_| ())
    }

    fn broken(&self, error: &io::Error) -> Error {
        Error::Read {
            file: self.file.clone(),
            line: self.line,
            reason: error.to_string(),
        }
    }
}
