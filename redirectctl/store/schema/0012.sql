-- Connections whose protection a person ended have a state of their own, and are stored whether they have moved or not.

UPDATE connections SET state = 'released', reason = coalesce(reason, 'released')
    WHERE state = 'refused' AND coalesce(reason, 'released') IN ('released', 'released-there', 'peer-forgotten');
