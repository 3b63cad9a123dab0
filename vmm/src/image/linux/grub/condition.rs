//! The command `[`, which is also called `test`.

use super::evaluate::Run;

/// The arguments of `[`: `-o` binds weaker than `-a`, and that weaker than `!`.
pub(super) struct Condition<'a, 'b> {
    pub(super) run: &'a Run<'b>,
    pub(super) words: &'a [String],
    pub(super) at: usize,
}

impl Condition<'_, '_> {
    /// Whether it holds.
    pub(super) fn any(&mut self) -> bool {
        let mut good = self.all();
        while self.take("-o") {
            good |= self.all();
        }
        good
    }

    fn all(&mut self) -> bool {
        let mut good = self.one();
        while self.take("-a") {
            good &= self.one();
        }
        good
    }

    fn take(&mut self, word: &str) -> bool {
        let is_next = self.words.get(self.at).is_some_and(|next| next == word);
        self.at += usize::from(is_next);
        is_next
    }

    fn one(&mut self) -> bool {
        let mut negated = false;
        while self.words.len() > self.at + 1 && self.take("!") {
            negated = !negated;
        }
        self.plain() != negated
    }

    fn plain(&mut self) -> bool {
        let rest = self.words.get(self.at..).unwrap_or_default();
        if let [left, operator, right, ..] = rest
            && let Some(holds) = compared(left, operator, right)
        {
            self.at += 3;
            return holds;
        }
        if let [operator, what, ..] = rest
            && let Some(holds) = self.about(operator, what)
        {
            self.at += 2;
            return holds;
        }
        self.at += 1;
        rest.first().is_some_and(|word| !word.is_empty())
    }

    fn about(&self, operator: &str, what: &str) -> Option<bool> {
        let (device, path) = self.run.place(what);
        match operator {
            "-z" => Some(what.is_empty()),
            "-n" => Some(!what.is_empty()),
            "-e" | "-f" => Some(self.run.devices.has(&device, &path)),
            "-s" => Some(self.run.devices.read(&device, &path).is_some_and(|file| !file.is_empty())),
            "-d" => Some(false),
            _ => None,
        }
    }
}

fn compared(left: &str, operator: &str, right: &str) -> Option<bool> {
    let number = |text: &str| text.parse::<i64>().unwrap_or_default();
    match operator {
        "=" | "==" => Some(left == right),
        "!=" => Some(left != right),
        "<" => Some(left < right),
        ">" => Some(left > right),
        "-eq" => Some(number(left) == number(right)),
        "-ne" => Some(number(left) != number(right)),
        "-lt" => Some(number(left) < number(right)),
        "-le" => Some(number(left) <= number(right)),
        "-gt" => Some(number(left) > number(right)),
        "-ge" => Some(number(left) >= number(right)),
        _ => None,
    }
}
