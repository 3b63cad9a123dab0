//! The syntax of GRUB's configuration files (GNU GRUB manual, "Writing full configuration files directly"): words with
//! quotes and variables, commands, `if`, `function`, `menuentry` and `submenu` with their blocks.
//!
//! `for`, `while`, `until` and `select`, which no distribution's generator writes, are refused by name.

use thiserror::Error;

/// Deepest nesting of blocks.
const MOST_DEPTH: usize = 32;
/// Most commands of one file.
const MOST_COMMANDS: usize = 65_536;

/// A part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// As it stands.
    Text(String),
    /// The value of a variable; within quotes it stays one word.
    Variable {
        /// Its name.
        name: String,
        /// Whether blanks in it separate no words.
        quoted: bool,
    },
}

/// A word before its variables are replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Word {
    /// What it is joined of.
    pub(super) parts: Vec<Part>,
    /// Something of it was in quotes: it is a word even when it is empty, and no keyword.
    pub(super) quoted: bool,
}

/// What runs behind a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joint {
    /// The next command in any case.
    Always,
    /// The next command if this one succeeds (`&&`).
    And,
    /// The next command if this one fails (`||`).
    Or,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Statement {
    /// A command with its arguments, and with its block if it has one (`menuentry`, `submenu`).
    Command(Vec<Word>, Option<Block>, Joint),
    /// Conditions, each with what to do, and what to do otherwise.
    If(Vec<(Block, Block)>, Block),
    /// A name for commands.
    Function(String, Block),
}

/// Several statements.
pub(super) type Block = std::rc::Rc<Vec<Statement>>;

/// Why a file is not understood.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SyntaxError {
    /// A quote has no end.
    #[error("line {line}: a quote or a '${{' has no end")]
    Unclosed {
        /// Where it begins.
        line: usize,
    },
    /// Something else is expected.
    #[error("line {line}: '{found}' where {wanted} is expected")]
    Unexpected {
        /// Where.
        line: usize,
        /// What is there.
        found: String,
        /// What should be there.
        wanted: &'static str,
    },
    /// Blocks in blocks.
    #[error("line {line}: blocks are nested deeper than {MOST_DEPTH}")]
    Deep {
        /// Where.
        line: usize,
    },
    /// Very many commands.
    #[error("it has more than the {MOST_COMMANDS} commands that are looked at")]
    Long,
}

/// Reads a file.
pub(super) fn parse(text: &str) -> Result<Block, SyntaxError> {
    let tokens = Lexer { text: text.chars().collect(), at: 0, line: 1 }.tokens()?;
    let mut parser = Parser { tokens, at: 0, commands: 0 };
    let block = parser.block(&[], 0)?;
    Ok(block)
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(Word),
    /// `;` or the end of a line.
    End,
    And,
    Or,
    Open,
    Close,
}

struct Lexer {
    text: Vec<char>,
    at: usize,
    line: usize,
}

impl Lexer {
    fn tokens(mut self) -> Result<Vec<(Token, usize)>, SyntaxError> {
        let mut tokens = Vec::new();
        while let Some(next) = self.peek(0) {
            let line = self.line;
            let token = match next {
                '\n' | ';' => self.symbol(1, Token::End),
                ' ' | '\t' | '\r' => {
                    self.take();
                    continue;
                }
                '#' => {
                    while self.peek(0).is_some_and(|next| next != '\n') {
                        self.take();
                    }
                    continue;
                }
                '{' => self.symbol(1, Token::Open),
                '}' => self.symbol(1, Token::Close),
                '&' if self.peek(1) == Some('&') => self.symbol(2, Token::And),
                '|' if self.peek(1) == Some('|') => self.symbol(2, Token::Or),
                '\\' if self.peek(1) == Some('\n') => {
                    self.take();
                    self.take();
                    continue;
                }
                _ => Token::Word(self.word()?),
            };
            tokens.push((token, line));
        }
        Ok(tokens)
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.text.get(self.at + ahead).copied()
    }

    fn take(&mut self) -> Option<char> {
        let next = self.peek(0)?;
        self.at += 1;
        self.line += usize::from(next == '\n');
        Some(next)
    }

    fn symbol(&mut self, len: usize, token: Token) -> Token {
        for _ in 0..len {
            self.take();
        }
        token
    }

    fn word(&mut self) -> Result<Word, SyntaxError> {
        let mut word = Word::default();
        while let Some(next) = self.peek(0) {
            match next {
                ' ' | '\t' | '\r' | '\n' | ';' | '{' | '}' => break,
                '&' if self.peek(1) == Some('&') => break,
                '|' if self.peek(1) == Some('|') => break,
                '\'' => self.single_quotes(&mut word)?,
                '"' => self.double_quotes(&mut word)?,
                '$' => self.variable(&mut word, false)?,
                '\\' => {
                    self.take();
                    match self.take() {
                        Some('\n') | None => {}
                        Some(escaped) => word.push(escaped),
                    }
                }
                _ => {
                    self.take();
                    word.push(next);
                }
            }
        }
        Ok(word)
    }

    fn single_quotes(&mut self, word: &mut Word) -> Result<(), SyntaxError> {
        let line = self.line;
        self.take();
        word.quoted = true;
        loop {
            match self.take() {
                Some('\'') => return Ok(()),
                Some(text) => word.push(text),
                None => return Err(SyntaxError::Unclosed { line }),
            }
        }
    }

    fn double_quotes(&mut self, word: &mut Word) -> Result<(), SyntaxError> {
        let line = self.line;
        self.take();
        word.quoted = true;
        loop {
            match self.peek(0) {
                Some('"') => {
                    self.take();
                    return Ok(());
                }
                Some('$') => self.variable(word, true)?,
                Some('\\') => {
                    self.take();
                    match self.take() {
                        Some(escaped @ ('"' | '\\' | '$')) => word.push(escaped),
                        Some('\n') | None => {}
                        Some(other) => ['\\', other].into_iter().for_each(|text| word.push(text)),
                    }
                }
                Some(text) => {
                    self.take();
                    word.push(text);
                }
                None => return Err(SyntaxError::Unclosed { line }),
            }
        }
    }

    fn variable(&mut self, word: &mut Word, quoted: bool) -> Result<(), SyntaxError> {
        let line = self.line;
        self.take();
        let braces = self.peek(0) == Some('{');
        if braces {
            self.take();
        }
        let mut name = String::new();
        while let Some(next) = self.peek(0) {
            let is_name = next.is_ascii_alphanumeric() || next == '_';
            // `$1`, `$?`, `$@`, ... are one character long.
            let is_special = name.is_empty() && ['?', '@', '*', '#'].contains(&next);
            if !is_name && !is_special {
                break;
            }
            self.take();
            name.push(next);
            if is_special || (!braces && name.len() == 1 && next.is_ascii_digit()) {
                break;
            }
        }
        if braces && self.take() != Some('}') {
            return Err(SyntaxError::Unclosed { line });
        }
        match name.is_empty() {
            true => word.push('$'),
            false => word.parts.push(Part::Variable { name, quoted }),
        }
        Ok(())
    }
}

impl Word {
    fn push(&mut self, text: char) {
        match self.parts.last_mut() {
            Some(Part::Text(last)) => last.push(text),
            _ => self.parts.push(Part::Text(text.to_string())),
        }
    }

    /// The word as a keyword.
    fn plain(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Text(text)] if !self.quoted => Some(text),
            _ => None,
        }
    }
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    commands: usize,
}

impl Parser {
    /// Statements up to one of these keywords, which is left; up to the end if there are none.
    fn block(&mut self, ends: &[&str], depth: usize) -> Result<Block, SyntaxError> {
        if depth > MOST_DEPTH {
            return Err(SyntaxError::Deep { line: self.line() });
        }
        let mut statements = Vec::new();
        loop {
            match self.tokens.get(self.at).map(|(token, _)| token) {
                None if ends.is_empty() => break,
                None => return Err(self.unexpected("the end of a block")),
                Some(Token::End) => self.at += 1,
                Some(Token::Close) if ends.contains(&"}") => break,
                Some(Token::Word(word)) if word.plain().is_some_and(|word| ends.contains(&word)) => break,
                Some(_) => {
                    self.commands += 1;
                    if self.commands > MOST_COMMANDS {
                        return Err(SyntaxError::Long);
                    }
                    statements.push(self.statement(depth)?);
                }
            }
        }
        Ok(statements.into())
    }

    fn statement(&mut self, depth: usize) -> Result<Statement, SyntaxError> {
        match self.keyword() {
            Some("if") => self.condition(depth),
            Some("function") => {
                self.at += 1;
                let name = self.keyword().map(str::to_owned);
                let name = name.ok_or_else(|| self.unexpected("the name of a function"))?;
                self.at += 1;
                Ok(Statement::Function(name, self.braces(depth)?))
            }
            Some("for" | "while" | "until" | "select" | "case") => {
                Err(self.unexpected("a command that is understood here"))
            }
            Some("then" | "elif" | "else" | "fi" | "do" | "done") => Err(self.unexpected("a command")),
            _ => self.command(depth),
        }
    }

    fn condition(&mut self, depth: usize) -> Result<Statement, SyntaxError> {
        let mut branches = Vec::new();
        let mut otherwise = Block::default();
        loop {
            // `if` or `elif`
            self.at += 1;
            let condition = self.block(&["then"], depth + 1)?;
            self.at += 1;
            let then = self.block(&["elif", "else", "fi"], depth + 1)?;
            branches.push((condition, then));
            match self.keyword() {
                Some("elif") => {}
                Some("else") => {
                    self.at += 1;
                    otherwise = self.block(&["fi"], depth + 1)?;
                    break;
                }
                _ => break,
            }
        }
        self.at += 1;
        Ok(Statement::If(branches, otherwise))
    }

    fn command(&mut self, depth: usize) -> Result<Statement, SyntaxError> {
        let mut words = Vec::new();
        let mut block = None;
        let mut joint = Joint::Always;
        while let Some((token, _)) = self.tokens.get(self.at) {
            match token {
                Token::Word(word) => {
                    words.push(word.clone());
                    self.at += 1;
                }
                Token::Open if !words.is_empty() && block.is_none() => block = Some(self.braces(depth)?),
                Token::And => joint = Joint::And,
                Token::Or => joint = Joint::Or,
                _ => break,
            }
            if joint != Joint::Always {
                self.at += 1;
                break;
            }
        }
        if words.is_empty() {
            return Err(self.unexpected("a command"));
        }
        Ok(Statement::Command(words, block, joint))
    }

    fn braces(&mut self, depth: usize) -> Result<Block, SyntaxError> {
        while self.tokens.get(self.at).is_some_and(|(token, _)| *token == Token::End) {
            self.at += 1;
        }
        if self.tokens.get(self.at).is_none_or(|(token, _)| *token != Token::Open) {
            return Err(self.unexpected("'{'"));
        }
        self.at += 1;
        let block = self.block(&["}"], depth + 1)?;
        self.at += 1;
        Ok(block)
    }

    fn keyword(&self) -> Option<&str> {
        match self.tokens.get(self.at) {
            Some((Token::Word(word), _)) => word.plain(),
            _ => None,
        }
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).or_else(|| self.tokens.last()).map_or(1, |(_, line)| *line)
    }

    fn unexpected(&self, wanted: &'static str) -> SyntaxError {
        let found = match self.tokens.get(self.at).map(|(token, _)| token) {
            None => "the end of the file".to_owned(),
            Some(Token::Word(word)) => word.plain().unwrap_or("a quoted word").chars().take(64).collect(),
            Some(Token::End) => "the end of a command".to_owned(),
            Some(Token::And) => "&&".to_owned(),
            Some(Token::Or) => "||".to_owned(),
            Some(Token::Open) => "{".to_owned(),
            Some(Token::Close) => "}".to_owned(),
        };
        SyntaxError::Unexpected { line: self.line(), found, wanted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_told_with_its_line() {
        let told = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(told("a\nset b='c"), "line 2: a quote or a '${' has no end");
        assert_eq!(
            told("\nwhile true; do x; done"),
            "line 2: 'while' where a command that is understood here is expected"
        );
        assert_eq!(
            told("if a; then\nb"),
            "line 2: 'the end of the file' where the end of a block is expected"
        );
        assert_eq!(told("}"), "line 1: '}' where a command is expected");
        assert_eq!(told(&"if ".repeat(100)), "line 1: blocks are nested deeper than 32");
        assert_eq!(told(&"a;".repeat(70_000)), "it has more than the 65536 commands that are looked at");
    }

    #[test]
    fn words_are_joined_of_text_quotes_and_variables() {
        let block = parse(r#"a"b $c\"d"'e $f'\ g${h}i$1x # j"#).unwrap();
        let Statement::Command(words, None, Joint::Always) = &block[0] else { panic!("{block:?}") };
        let text = |text: &str| Part::Text(text.to_owned());
        let variable = |name: &str, quoted| Part::Variable { name: name.to_owned(), quoted };
        let parts = [
            text("ab "),
            variable("c", true),
            text("\"de $f g"),
            variable("h", false),
            text("i"),
            variable("1", false),
            text("x"),
        ];
        assert_eq!(words.as_slice(), [Word { parts: parts.to_vec(), quoted: true }]);
    }
}
