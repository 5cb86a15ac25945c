"""What tests share: call logs, applications, servers, and stand-ins for what is out there."""
