//! A list that mostly has one element, which then takes no memory of its own.

use std::ops::Deref;

/// The list, in an order that its user keeps.
#[derive(Clone, Debug)]
pub enum Few<T> {
    /// One element.
    One(T),
    /// Any other number.
    Many(Vec<T>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

impl<T: PartialEq> PartialEq for Few<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for Few<T> {}

impl<T> Few<T> {
    /// Adds an element at the end.
    pub fn push(&mut self, element: T) {
        self.insert(self.len(), element);
    }

    /// Adds an element before the one at `index`, or at the end.
    pub fn insert(&mut self, index: usize, element: T) {
        *self = match std::mem::take(self) {
            Self::Many(many) if many.is_empty() => Self::One(element),
            Self::Many(mut many) => {
                many.insert(index, element);
                Self::Many(many)
            }
            Self::One(one) if index == 0 => Self::Many(vec![element, one]),
            Self::One(one) => Self::Many(vec![one, element]),
        };
    }

    /// Puts an element in the place of the one at `index`, if there is one.
    pub fn set(&mut self, index: usize, element: T) {
        let place = match self {
            Self::One(one) => (index == 0).then_some(one),
            Self::Many(many) => many.get_mut(index),
        };
        if let Some(place) = place {
            *place = element;
        }
    }

    /// Drops the elements for which `keep` does not hold.
    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        *self = match std::mem::take(self) {
            Self::One(one) if keep(&one) => Self::One(one),
            Self::One(_) => Self::default(),
            Self::Many(mut many) => {
                many.retain(keep);
                match many.pop() {
                    Some(last) if many.is_empty() => Self::One(last),
                    Some(last) => {
                        many.push(last);
                        Self::Many(many)
                    }
                    None => Self::default(),
                }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_list_of_any_length() {
        let mut few = Few::default();
        assert!(few.is_empty());
        few.retain(|_| true);
        few.push(2);
        assert_eq!((&*few, matches!(few, Few::One(_))), (&[2][..], true));
        few.insert(0, 1);
        few.push(3);
        assert_eq!(*few, [1, 2, 3]);
        few.set(1, 5);
        few.set(7, 9);
        few.retain(|element| *element != 1);
        assert_eq!(*few, [5, 3]);
        few.retain(|element| *element == 3);
        few.set(0, 4);
        assert_eq!((&*few, matches!(few, Few::One(_))), (&[4][..], true));
        few.retain(|_| false);
        assert!(few.is_empty());
    }
}
