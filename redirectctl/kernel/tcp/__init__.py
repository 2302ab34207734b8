"""What TCP of this host can be made to do from outside its sockets: send, go on, wait, learn a smaller MTU."""
