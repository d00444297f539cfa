//! A problem that lasts is logged when it comes, not each time it is seen.

use std::{collections::BTreeSet, mem::take};

/// The problems that were there when somebody looked last.
#[derive(Debug, Default)]
pub struct Complaints(BTreeSet<String>);

impl Complaints {
    /// Takes note of the problems there are now. Returns those that were not there before, in their order.
    pub fn news<'a>(&mut self, problems: impl IntoIterator<Item = &'a String>) -> Vec<&'a String> {
        let before = take(&mut self.0);
        let mut news = Vec::new();
        for problem in problems {
            if self.0.insert(problem.clone()) && !before.contains(problem) {
                news.push(problem);
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_news_when_it_comes_and_when_it_comes_back() {
        let [one, other] = ["one", "other"].map(str::to_owned);
        let mut complaints = Complaints::default();
        assert_eq!(complaints.news([&other, &one, &other]), [&other, &one]);
        assert!(complaints.news([&one]).is_empty());
        assert_eq!(complaints.news([&one, &other]), [&other]);
    }
}
